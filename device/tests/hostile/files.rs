// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory and logs that are truncated after they were mapped, and file descriptors of the wrong kind.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, epoll, eventfd};
use spec::control::{Refusal, Reply, Request};

use crate::fuse::{self, Fuse};
use crate::machine::{
    HINTS, INFLATE, MEMORY, Machine, USER, WRITE, copy, event, memory_file, slot, table,
};
use crate::raw::{
    ADD_MEM_REG, RESET_DEVICE, Raw, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD, SET_FEATURES,
    SET_LOG_BASE, SET_MEM_TABLE, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK, idle, longs,
    settles, words,
};
use crate::rig::guest::{Daemon, Guest, LOG_ALL, USUAL};
use crate::rig::migrator::Migrator;

#[test]
fn a_front_end_that_truncates_its_memory_loses_its_connection_and_no_other_is_affected() {
    let mut daemon = Daemon::start(&[]);
    let before = idle(&daemon);
    for round in 0..3 {
        let machine = Machine::running(&daemon);
        machine.file.set_len(0).unwrap();
        machine.kick(HINTS);
        assert!(machine.raw.hangs_up(), "round {round}");
    }
    settles(&daemon, before);
    assert!(daemon.lives());
    let mut migrator = Migrator::connect(&daemon.control());
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let id = migrator.open(1);
    guest.start_round(id);
}

#[test]
fn memory_that_is_lost_during_a_close_harms_neither_device_nor_migrator() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::running(&daemon);
    // Without a channel for changes the guest could not be asked, so no epoch would open.
    let (_notices, channel) = UnixStream::pair().unwrap();
    let channel = [copy(&channel)];
    assert_eq!(
        machine.raw.order(SET_BACKEND_REQ_FD, &[], &channel),
        Some(0)
    );
    let mut migrator = Migrator::connect(&daemon.control());
    migrator.open(1);
    machine.file.set_len(0).unwrap();
    // Without a kick: the migrator's close takes what is queued, and so reads the ring.
    assert_eq!(migrator.close(1).pages, 0);
    assert!(machine.raw.hangs_up());
    assert_eq!(migrator.status().epoch, 0);
    assert!(daemon.lives());
}

#[test]
fn truncating_a_part_of_the_memory_ends_the_connection() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::running(&daemon);
    machine.start(INFLATE);
    // The rings stay. The page with the numbers goes.
    machine.describe(INFLATE, 0, (MEMORY - 4096, 1024, 0, 0));
    machine.offer(INFLATE, 0);
    machine.file.set_len(MEMORY / 2).unwrap();
    machine.kick(INFLATE);
    assert!(machine.raw.hangs_up());
    assert!(daemon.lives());
}

#[test]
fn a_log_that_is_truncated_ends_the_connection_and_not_the_daemon() {
    let mut daemon = Daemon::start(&[]);
    let before = idle(&daemon);
    let mut machine = Machine::running(&daemon);
    let log = memory_file(4096);
    let payload = longs(&[4096, 0]);
    let order = |machine: &mut Machine, request, payload: &[u8], fds: &[OwnedFd]| {
        machine.raw.send(request, 1, payload, fds);
    };
    order(&mut machine, SET_LOG_BASE, &payload, &[copy(&log)]);
    assert_eq!(machine.raw.answer(), Some(payload));
    let features = (USUAL | LOG_ALL).to_le_bytes();
    assert_eq!(machine.raw.order(SET_FEATURES, &features, &[]), Some(0));
    machine.send(HINTS, (0, 4096, WRITE, 0));
    log.set_len(0).unwrap();
    machine.send(HINTS, (0, 4096, WRITE, 0));
    assert!(machine.raw.hangs_up());
    settles(&daemon, before);
    assert!(daemon.lives());
}

#[test]
fn kicks_are_eventfds_and_interrupts_are_eventfds_or_sockets() {
    let daemon = Daemon::start(&[]);
    let mut machine = Machine::new(&daemon);
    let wrong: [fn() -> OwnedFd; 4] = [
        // Like an eventfd, it is in no folder.
        || epoll::create(epoll::CreateFlags::CLOEXEC).unwrap(),
        || memory_file(4096).into(),
        || File::open("/dev/zero").unwrap().into(),
        || std::io::pipe().unwrap().0.into(),
    ];
    for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        for make in wrong {
            let result = machine.raw.order(request, &longs(&[1]), &[make()]);
            assert_eq!(result, Some(1), "request {request}");
        }
    }
    let (mut interrupts, socket) = UnixStream::pair().unwrap();
    let kick = [copy(&interrupts)];
    assert_eq!(
        machine.raw.order(SET_VRING_KICK, &longs(&[1]), &kick),
        Some(1)
    );
    // User Mode Linux does this.
    machine.calls[HINTS as usize] = socket.into();
    machine.start(HINTS);
    machine.send(HINTS, (0, 4096, WRITE, 0));
    let mut interrupt = [0; 8];
    interrupts.read_exact(&mut interrupt).unwrap();
    // A full eventfd blocks nobody.
    for _ in 0..10_000 {
        machine.send(HINTS, (0, 4096, WRITE, 0));
    }
}

#[test]
fn neither_a_full_interrupt_nor_a_stolen_kick_blocks_the_device() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::new(&daemon);
    machine.calls[HINTS as usize] = eventfd(0, EventfdFlags::empty()).unwrap();
    machine.start(HINTS);
    let call = &machine.calls[HINTS as usize];
    rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    // The front end makes it blocking again.
    rustix::fs::fcntl_setfl(call, rustix::fs::OFlags::empty()).unwrap();
    for _ in 0..100 {
        machine.send(HINTS, (0, 4096, WRITE, 0));
    }
    machine.is_answered();
    Migrator::connect(&daemon.control()).status();
    drop(machine);
    Guest::boot(&daemon, USUAL, 3);
    assert!(daemon.lives());
}

#[test]
fn the_channel_for_changes_is_one_unix_socket_or_none() {
    let daemon = Daemon::start(&[]);
    let mut raw = Raw::negotiate(&daemon);
    let socket = || OwnedFd::from(UnixStream::pair().unwrap().0);
    for fds in [vec![], vec![event()], vec![socket(), socket()]] {
        assert_eq!(raw.order(SET_BACKEND_REQ_FD, &[], &fds), Some(1));
    }
    assert_eq!(raw.order(SET_BACKEND_REQ_FD, &[], &[socket()]), Some(0));
}

#[test]
fn a_state_is_not_saved_into_the_reading_end_of_a_pipe() {
    let daemon = Daemon::start(&[]);
    let mut raw = Raw::negotiate(&daemon);
    // A pipe's reading end cannot be written to.
    let reader = OwnedFd::from(std::io::pipe().unwrap().0);
    raw.send(SET_DEVICE_STATE_FD, 1, &words(&[0, 0]), &[reader]);
    raw.answer();
    assert_eq!(raw.ask(crate::raw::CHECK_DEVICE_STATE, &[]), longs(&[1]));
    assert_eq!(raw.order(RESET_DEVICE, &[], &[]), Some(0));
}

#[test]
fn files_of_a_file_system_that_never_answers_are_refused_without_asking_it() {
    let mut daemon = Daemon::start(&[]);
    let fuse = match Fuse::mount() {
        Ok(fuse) => fuse,
        Err(error) => {
            return spec_testing::skipped(format_args!("this user may not mount FUSE: {error}"));
        }
    };
    let file = fuse.open();
    let mut machine = Machine::running(&daemon);
    let plugged = slot([MEMORY, 4096, USER + MEMORY, 0]);
    let ring = longs(&[INFLATE.into()]);
    for (request, payload) in [
        (ADD_MEM_REG, &plugged),
        (SET_MEM_TABLE, &table(&[[0, MEMORY, USER, 0]])),
        (SET_VRING_KICK, &ring),
        (SET_VRING_CALL, &ring),
    ] {
        let result = machine.raw.order(request, payload, &[copy(&file)]);
        assert_eq!(result, Some(1), "request {request}");
    }
    machine.is_answered();
    let payload = longs(&[4096, 0]);
    machine.raw.send(SET_LOG_BASE, 1, &payload, &[copy(&file)]);
    assert!(machine.raw.hangs_up());
    let mut raw = Raw::negotiate(&daemon);
    for direction in [0, 1] {
        let payload = words(&[direction, 0]);
        raw.send(SET_DEVICE_STATE_FD, 1, &payload, &[copy(&file)]);
        raw.answer();
    }
    let mut migrator = Migrator::connect(&daemon.control());
    let bytes = fuse::BYTES;
    let map = Request::SetHintMap { bytes };
    let reply = migrator.ask_with(map, &[copy(&file)]);
    assert_eq!(reply, Reply::Refused(Refusal::HintMap));
    assert!(daemon.lives());
    drop((daemon, file));
    assert_eq!(fuse.unanswered(), Default::default());
}

#[test]
fn memory_on_a_file_system_without_a_disk_is_refused() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    // For machines where FUSE cannot be mounted.
    let proc = OwnedFd::from(File::open("/proc/self/maps").unwrap());
    let plugged = slot([MEMORY, 4096, USER + MEMORY, 0]);
    assert_eq!(machine.raw.order(ADD_MEM_REG, &plugged, &[proc]), Some(1));
    machine.is_answered();
}
