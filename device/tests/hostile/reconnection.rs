// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front ends that are killed at any moment, and state transfers that fail.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use crate::machine::{
    HINTS, INFLATE, MEMORY, Machine, STATISTICS, USER, WRITE, addresses, copy, memory_file, table,
};
use crate::raw::*;
use crate::rig::eventually;
use crate::rig::guest::{Daemon, Guest, LOG_ALL, MIB, USUAL};
use crate::rig::migrator::Migrator;

/// What a front end does before it is killed.
type Act = fn(&Daemon);

const MOMENTS: [(&str, Act); 12] = [
    ("connected", |daemon| drop(Raw::connect(daemon))),
    ("before features", |daemon| {
        Raw::connect(daemon).ask(GET_FEATURES, &[]);
    }),
    ("negotiated", |daemon| drop(Raw::negotiate(daemon))),
    ("in a header", |daemon| {
        Raw::negotiate(daemon).send_bytes(&words(&[SET_MEM_TABLE, 1]));
    }),
    ("between header and payload", |daemon| {
        Raw::negotiate(daemon).send_bytes(&words(&[SET_MEM_TABLE, 1, 40]));
    }),
    ("in a memory table", |daemon| {
        let mut raw = Raw::negotiate(daemon);
        let payload = table(&[[0, MEMORY, USER, 0]]);
        let file = [memory_file(MEMORY).into()];
        raw.send(SET_MEM_TABLE, 1 | NEED_REPLY, &payload, &file);
    }),
    ("with memory", |daemon| drop(Machine::new(daemon))),
    ("with half a ring", |daemon| {
        let mut machine = Machine::new(daemon);
        let parts = addresses(HINTS, 0, Machine::parts(HINTS), 0);
        assert_eq!(machine.raw.order(SET_VRING_ADDR, &parts, &[]), Some(0));
    }),
    ("running", |daemon| {
        let machine = Machine::running(daemon);
        for _ in 0..100 {
            machine.kick(HINTS);
        }
    }),
    ("logging", |daemon| {
        let mut machine = Machine::running(daemon);
        let log = memory_file(4096);
        let payload = longs(&[4096, 0]);
        machine.raw.send(SET_LOG_BASE, 1, &payload, &[copy(&log)]);
        assert!(machine.raw.answer().is_some());
        let features = (USUAL | LOG_ALL).to_le_bytes();
        machine.raw.order(SET_FEATURES, &features, &[]);
        machine.send(HINTS, (0, 4096, WRITE, 0));
    }),
    ("in a transfer out", |daemon| {
        let mut machine = Machine::new(daemon);
        let (_reader, writer) = std::io::pipe().unwrap();
        let fd = [OwnedFd::from(writer)];
        machine
            .raw
            .send(SET_DEVICE_STATE_FD, 1, &words(&[0, 0]), &fd);
        assert_eq!(machine.raw.answer(), Some(longs(&[0x100])));
    }),
    ("in a transfer in", |daemon| {
        let mut machine = Machine::new(daemon);
        let (reader, mut writer) = std::io::pipe().unwrap();
        let fd = [OwnedFd::from(reader)];
        machine
            .raw
            .send(SET_DEVICE_STATE_FD, 1, &words(&[1, 0]), &fd);
        assert_eq!(machine.raw.answer(), Some(longs(&[0x100])));
        writer.write_all(b"LBAL").unwrap();
    }),
];

#[test]
fn a_front_end_may_be_killed_at_any_moment_and_the_next_finds_the_device_as_it_was() {
    let mut daemon = Daemon::start(&["--target", "4M"]);
    let idle = idle(&daemon);
    let mut migrator = Migrator::connect(&daemon.control());
    for (epoch, (moment, act)) in (1..).zip(MOMENTS) {
        act(&daemon);
        let mut guest = Guest::boot(&daemon, USUAL, 3);
        assert_eq!(guest.config().num_pages, 1024, "the target, {moment}");
        let id = migrator.open(epoch);
        guest.start_round(id);
        let hint = crate::rig::queue::Buffer::In(8 * MIB, 4096);
        guest.hints.send(&[hint]);
        assert_eq!(migrator.close(epoch).hints, 1, "{moment}");
        drop(guest);
        assert!(daemon.lives(), "{moment}");
    }
    drop(migrator);
    settles(&daemon, idle);
}

#[test]
fn a_daemon_for_one_front_end_ends_cleanly_whenever_that_is_killed() {
    for (moment, act) in MOMENTS {
        let mut daemon = Daemon::start(&["--once"]);
        act(&daemon);
        let status = eventually("the daemon's end", || daemon.process.try_wait().unwrap());
        assert!(status.success(), "{moment}: {status}");
    }
}

#[test]
fn a_statistics_buffer_that_a_killed_front_end_left_is_taken_again() {
    let daemon = Daemon::start(&[]);
    let mut machine = Machine::new(&daemon);
    machine.start(STATISTICS);
    let offer = |machine: &Machine, head: u16| {
        machine.describe(STATISTICS, head, (Machine::buffers(STATISTICS), 10, 0, 0));
        machine.offer(STATISTICS, head);
        machine.kick(STATISTICS);
    };
    offer(&machine, 0);
    offer(&machine, 1);
    eventually("the first statistics", || {
        (machine.used(STATISTICS) == 1).then_some(())
    });
    // The same guest over a new connection: its front end goes on where the used ring ends.
    let mut machine = machine.reconnected(&daemon);
    machine.start_from(STATISTICS, 1);
    offer(&machine, 2);
    eventually("the second statistics", || {
        (machine.used(STATISTICS) == 2).then_some(())
    });
    let element = machine.read(Machine::used_ring(STATISTICS) + 4 + 8, 8);
    assert_eq!(element, words(&[1, 0]));
    let stopped = machine.raw.ask(GET_VRING_BASE, &words(&[STATISTICS, 0]));
    assert_eq!(stopped, words(&[STATISTICS, 3]));
    assert_eq!(machine.used(STATISTICS), 3);
}

#[test]
fn a_state_is_saved_and_loaded_while_every_ring_is_stopped_even_if_none_is_enabled() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    let disable = words(&[HINTS, 0]);
    assert_eq!(machine.raw.order(SET_VRING_ENABLE, &disable, &[]), Some(0));
    for direction in [0, 1] {
        let (reader, writer) = std::io::pipe().unwrap();
        let fd: OwnedFd = if direction == 0 {
            writer.into()
        } else {
            reader.into()
        };
        let payload = words(&[direction, 0]);
        machine.raw.send(SET_DEVICE_STATE_FD, 1, &payload, &[fd]);
        assert_eq!(machine.raw.answer(), Some(longs(&[0x101])), "started");
    }
}

/// Asks for a save (0) or a load (1) over `fd`. The device then has the only copy of `fd`.
fn transfer(machine: &mut Machine, direction: u32, fd: impl Into<OwnedFd>) {
    let payload = words(&[direction, 0]);
    machine
        .raw
        .send(SET_DEVICE_STATE_FD, 1, &payload, &[fd.into()]);
    assert_eq!(machine.raw.answer(), Some(longs(&[0x100])));
}

/// Loads `state`, and closes the pipe if `close` is set. Returns whether the device accepted it.
fn load(machine: &mut Machine, state: &[u8], close: bool) -> bool {
    let (reader, mut writer) = std::io::pipe().unwrap();
    transfer(machine, 1, reader);
    // The device may close the pipe before everything is written.
    let _ = writer.write_all(state);
    let open = (!close).then_some(writer);
    let taken = machine.raw.ask(CHECK_DEVICE_STATE, &[]) == longs(&[0]);
    drop(open);
    taken
}

fn save(machine: &mut Machine) -> Vec<u8> {
    let (mut reader, writer) = std::io::pipe().unwrap();
    transfer(machine, 0, writer);
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    assert_eq!(machine.raw.ask(CHECK_DEVICE_STATE, &[]), longs(&[0]));
    state
}

#[test]
fn every_invalid_state_is_refused() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::new(&daemon);
    let good = save(&mut machine);
    for length in 0..good.len() {
        assert!(!load(&mut machine, &good[..length], true), "{length} bytes");
    }
    assert!(!load(&mut machine, &[&good[..], &[0]].concat(), true));
    assert!(!load(&mut machine, &vec![0xff; 20 << 20], true), "endless");
    assert!(!load(&mut machine, &good, false), "a pipe that stays open");
    for at in (0..good.len()).step_by(4) {
        for word in [0, 1, 0x7fff_ffff, u32::MAX] {
            let mut odd = good.clone();
            odd[at..at + 4].copy_from_slice(&word.to_le_bytes());
            if load(&mut machine, &odd, true) {
                assert_eq!(save(&mut machine).len(), good.len());
                assert!(
                    load(&mut machine, &good, true),
                    "the good state is still accepted"
                );
            }
        }
    }
    // A check that comes twice, or without a transfer, fails.
    assert_eq!(machine.raw.ask(CHECK_DEVICE_STATE, &[]), longs(&[1]));
    machine.start(INFLATE);
    assert!(daemon.lives());
}
