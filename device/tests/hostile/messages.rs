// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages in wrong numbers, cut short, or with superfluous file descriptors.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::{
    HINTS, MEMORY, Machine, USER, addresses, copy, event, memory_file, slot, table,
};
use crate::raw::*;
use crate::rig::eventually;
use crate::rig::guest::{Daemon, Guest, MIB, USUAL};
use crate::rig::migrator::Migrator;

/// Often enough to show any leak.
const OFTEN: usize = 10_000;
/// Messages in flight at once: fewer than a socket holds.
const BATCH: usize = 50;

/// Sends a message many times over its own connection, with the file descriptors that `fds` makes, and compares what
/// the daemon has open before and after. `answers` says whether each message has an answer of its own.
fn send_often(
    name: &str,
    request: u32,
    payload: &[u8],
    answers: bool,
    fds: impl Fn() -> Vec<OwnedFd>,
) {
    let daemon = Daemon::start(&[]);
    let idle = idle(&daemon);
    let mut machine = Machine::new(&daemon);
    let mut once = |count: usize| {
        for batch in 0..count.div_ceil(BATCH) {
            for _ in 0..BATCH {
                let sent = machine
                    .raw
                    .try_send(request, 1 | NEED_REPLY, payload, &fds());
                sent.unwrap_or_else(|error| panic!("{name}, batch {batch}: {error}"));
            }
            for _ in 0..BATCH {
                let answer = machine.raw.answer();
                let answer = answer.unwrap_or_else(|| panic!("{name}: the device hung up"));
                assert!(answers || answer.len() == 8, "{name}");
            }
        }
        machine.is_answered();
        open_in(&daemon)
    };
    let before = once(1);
    assert_eq!(once(OFTEN), before, "{name}");
    drop(machine);
    settles(&daemon, idle);
}

fn none() -> Vec<OwnedFd> {
    Vec::new()
}

#[test]
fn messages_about_the_device_leave_nothing_behind_however_often() {
    send_often("GET_FEATURES", GET_FEATURES, &[], true, none);
    send_often(
        "SET_FEATURES",
        SET_FEATURES,
        &USUAL.to_le_bytes(),
        false,
        none,
    );
    send_often(
        "GET_PROTOCOL_FEATURES",
        GET_PROTOCOL_FEATURES,
        &[],
        true,
        none,
    );
    let features = PROTOCOL_FEATURES.to_le_bytes();
    send_often(
        "SET_PROTOCOL_FEATURES",
        SET_PROTOCOL_FEATURES,
        &features,
        false,
        none,
    );
    send_often("GET_QUEUE_NUM", GET_QUEUE_NUM, &[], true, none);
    send_often("GET_MAX_MEM_SLOTS", GET_MAX_MEM_SLOTS, &[], true, none);
    send_often("RESET_DEVICE", RESET_DEVICE, &[], false, none);
    let config = [words(&[0, 16, 1]), vec![0; 16]].concat();
    send_often("GET_CONFIG", GET_CONFIG, &config, true, none);
    send_often("SET_CONFIG", SET_CONFIG, &config, false, none);
}

#[test]
fn messages_about_memory_leave_nothing_behind_however_often() {
    let file = memory_file(MEMORY);
    let one = table(&[[0, MEMORY, USER, 0]]);
    send_often("SET_MEM_TABLE", SET_MEM_TABLE, &one, false, || {
        vec![copy(&file)]
    });
    // The first is accepted. The others overlap it.
    let more = slot([MEMORY, MIB, USER + MEMORY, 0]);
    send_often("ADD_MEM_REG", ADD_MEM_REG, &more, false, || {
        vec![copy(&file)]
    });
    send_often("REM_MEM_REG", REM_MEM_REG, &more, false, none);
    let log = longs(&[4096, 0]);
    send_often("SET_LOG_BASE", SET_LOG_BASE, &log, true, || {
        vec![copy(&file)]
    });
}

#[test]
fn messages_about_rings_leave_nothing_behind_however_often() {
    let event = event();
    let ring = longs(&[3]);
    let size = words(&[HINTS, 64]);
    send_often("SET_VRING_NUM", SET_VRING_NUM, &size, false, none);
    let parts = addresses(HINTS, 0, Machine::parts(HINTS), 0);
    send_often("SET_VRING_ADDR", SET_VRING_ADDR, &parts, false, none);
    send_often(
        "SET_VRING_BASE",
        SET_VRING_BASE,
        &words(&[HINTS, 0]),
        false,
        none,
    );
    send_often(
        "GET_VRING_BASE",
        GET_VRING_BASE,
        &words(&[HINTS, 0]),
        true,
        none,
    );
    send_often(
        "SET_VRING_ENABLE",
        SET_VRING_ENABLE,
        &words(&[HINTS, 1]),
        false,
        none,
    );
    // The first starts the ring. The others are refused.
    send_often("SET_VRING_KICK", SET_VRING_KICK, &ring, false, || {
        vec![copy(&event)]
    });
    send_often("SET_VRING_CALL", SET_VRING_CALL, &ring, false, || {
        vec![copy(&event)]
    });
    send_often("SET_VRING_ERR", SET_VRING_ERR, &ring, false, || {
        vec![copy(&event)]
    });
}

#[test]
fn messages_about_sockets_and_state_leave_nothing_behind_however_often() {
    let (socket, _other) = UnixStream::pair().unwrap();
    send_often("SET_BACKEND_REQ_FD", SET_BACKEND_REQ_FD, &[], false, || {
        vec![copy(&socket)]
    });
    for (name, direction) in [("save", 0), ("load", 1)] {
        send_often(
            name,
            SET_DEVICE_STATE_FD,
            &words(&[direction, 0]),
            true,
            || {
                let (reader, writer) = std::io::pipe().unwrap();
                vec![if direction == 0 {
                    writer.into()
                } else {
                    reader.into()
                }]
            },
        );
    }
    send_often("CHECK_DEVICE_STATE", CHECK_DEVICE_STATE, &[], true, none);
}

#[test]
fn rings_that_are_started_and_stopped_leave_nothing_behind() {
    let daemon = Daemon::start(&[]);
    let mut machine = Machine::running(&daemon);
    let mut turn = |count: usize| {
        for _ in 0..count {
            machine.kick(HINTS);
            assert_eq!(
                machine.raw.ask(GET_VRING_BASE, &words(&[HINTS, 0])).len(),
                8
            );
            machine.start(HINTS);
        }
        open_in(&daemon)
    };
    let before = turn(1);
    assert_eq!(turn(1000), before);
}

#[test]
fn file_descriptors_are_closed_whatever_message_brings_them() {
    let mut daemon = Daemon::start(&[]);
    let idle = idle(&daemon);
    for request in 0..REQUESTS {
        for count in [1, 2, 3, 4, 5, 6, 7, 8, 32, 33] {
            let mut raw = Raw::negotiate(&daemon);
            let fds: Vec<_> = (0..count).map(|_| event()).collect();
            let _ = raw.try_send(request, 1, &[0; 40], &fds);
            // Some more, with another message's payload.
            let _ = raw.try_send(GET_QUEUE_NUM, 1, &[], &fds[..1]);
        }
        settles(&daemon, idle);
        assert!(daemon.lives(), "request {request}");
    }
}

#[test]
fn every_request_with_a_short_payload_is_answered_or_ends_the_connection() {
    let mut daemon = Daemon::start(&[]);
    let idle = idle(&daemon);
    for request in 0..REQUESTS {
        for (size, fill) in [
            (0, 0),
            (1, 0xff),
            (4, 0),
            (7, 1),
            (8, 0xff),
            (40, 0),
            (40, 0xff),
            (4096, 0xff),
        ] {
            let mut raw = Raw::negotiate(&daemon);
            raw.send(request, 1 | NEED_REPLY, &vec![fill; size], &[]);
            raw.send(GET_FEATURES, 1, &[], &[]);
            // An answer or a hang-up. Waiting for ever would end in a timeout.
            raw.answer();
        }
    }
    settles(&daemon, idle);
    assert!(daemon.lives());
}

#[test]
fn wrong_versions_replies_and_reserved_flags_are_hung_up_on() {
    let mut daemon = Daemon::start(&[]);
    for flags in [0, 2, 3, 1 | 1 << 2, 1 | 1 << 4, u32::MAX] {
        let mut raw = Raw::negotiate(&daemon);
        raw.send(GET_QUEUE_NUM, flags, &[], &[]);
        assert!(raw.hangs_up(), "flags {flags:#x}");
    }
    assert!(daemon.lives());
}

#[test]
fn a_message_may_be_cut_off_anywhere() {
    let mut daemon = Daemon::start(&[]);
    let idle = idle(&daemon);
    let mut message = words(&[SET_MEM_TABLE, 1, 40]);
    message.extend(table(&[[0, MEMORY, USER, 0]]));
    for length in 0..message.len() {
        let mut raw = Raw::negotiate(&daemon);
        raw.send_bytes(&message[..length]);
    }
    settles(&daemon, idle);
    Guest::boot(&daemon, USUAL, 3);
    assert!(daemon.lives());
}

#[test]
fn a_message_may_arrive_byte_by_byte() {
    let daemon = Daemon::start(&["--once"]);
    let mut raw = Raw::negotiate(&daemon);
    for byte in words(&[GET_QUEUE_NUM, 1, 0]) {
        raw.0.write_all(&[byte]).unwrap();
    }
    assert_eq!(raw.answer(), Some(longs(&[5])));
}

#[test]
fn a_front_end_that_stops_in_mid_message_holds_up_neither_the_migrator_nor_the_end() {
    for part in [&[1u8][..], &words(&[SET_CONFIG, 1, 40])[..]] {
        let mut daemon = Daemon::start(&[]);
        let mut raw = Raw::negotiate(&daemon);
        raw.send_bytes(part);
        let mut migrator = Migrator::connect(&daemon.control());
        for _ in 0..10 {
            migrator.status();
        }
        let process = Pid::from_raw(daemon.process.id() as i32).unwrap();
        kill_process(process, Signal::TERM).unwrap();
        let status = eventually("the daemon's end", || daemon.process.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

#[test]
fn a_front_end_that_does_not_finish_its_message_is_hung_up_on_and_the_next_served() {
    let mut daemon = Daemon::start(&[]);
    let mut raw = Raw::negotiate(&daemon);
    raw.send_bytes(&words(&[SET_CONFIG, 1, 40]));
    let waiting = Raw::connect(&daemon);
    assert!(raw.hangs_up());
    drop(waiting);
    Guest::boot(&daemon, USUAL, 3);
    assert!(daemon.lives());
}
