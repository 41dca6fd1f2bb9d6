// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Front ends connect and disconnect: what the device keeps, what it releases, and when it ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command as Process;

use rig::guest::{Daemon, Guest, MIB, POISON, STATS, USUAL};
use rig::migrator::Migrator;
use rig::queue::Buffer;
use spec::control::Refusal;
use spec::hint_map::HintPhase;
use spec_testing::process::{open_files, threads};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

const FREE: u64 = 8 * MIB;

#[test]
fn the_device_outlives_its_front_end_and_its_ids_go_on() {
    let mut daemon = Daemon::start(&[]);
    let mut migrator = Migrator::connect(&daemon.control());
    let mut last = None;
    for epoch in 1..=3 {
        let mut guest = Guest::boot(&daemon, USUAL, 3);
        let id = migrator.open(epoch);
        assert!(last.is_none_or(|last: spec::balloon::CommandId| last.next() == id));
        last = Some(id);
        assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
        guest.start_round(id);
        guest.hints.send(&[Buffer::In(FREE + epoch * MIB, 4096)]);
        drop(guest);
        rig::eventually("the end of the round", || {
            (migrator.status().features == 0).then_some(())
        });
        assert_eq!(migrator.open_refused(9), Refusal::NotNegotiated);
        let report = migrator.close(epoch);
        assert_eq!((report.hints, report.phase), (1, HintPhase::Closed));
    }
    assert!(daemon.lives());
}

#[test]
fn front_ends_leave_nothing_open_in_the_device() {
    let daemon = Daemon::start(&[]);
    let process = daemon.process.id();
    let mut before = None;
    for _ in 0..20 {
        drop(Guest::boot(&daemon, USUAL, 3));
        // A connected front end also has everything that its predecessors left behind.
        let _next = Guest::boot(&daemon, USUAL, 3);
        let now = (open_files(process), threads(process));
        assert_eq!(
            *before.get_or_insert(now),
            now,
            "the numbers of file descriptors and threads"
        );
    }
}

#[test]
fn what_the_guest_wrote_outlives_the_front_end_but_not_a_reset() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::boot(&daemon, USUAL | POISON, 3);
    let flags = VhostUserConfigFlags::WRITABLE;
    guest.front_end.set_config(12, flags, &[0xaa; 4]).unwrap();
    drop(guest);
    let mut guest = Guest::boot(&daemon, USUAL | POISON, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.open_refused(1), Refusal::Poison);
    guest.front_end.reset_device().unwrap();
    assert_eq!(guest.config().poison_val, 0);
}

#[test]
fn front_ends_that_send_garbage_are_hung_up_on_and_the_next_is_served() {
    let mut daemon = Daemon::start(&[]);
    let huge = [1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    for garbage in [&[0xff; 64][..], &huge, &[0; 12], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = daemon.connect();
        stream.set_read_timeout(Some(rig::PATIENCE)).unwrap();
        stream.write_all(garbage).unwrap();
        // Without all bytes read, a hang-up may be a reset. Waiting for ever would end in a timeout.
        let mut rest = Vec::new();
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
    Guest::boot(&daemon, USUAL | STATS, 3);
    assert!(daemon.lives());
}

#[test]
fn a_daemon_for_one_front_end_ends_with_it_in_success() {
    let mut daemon = Daemon::start(&["--once"]);
    drop(Guest::boot(&daemon, USUAL, 3));
    let status = rig::eventually("the daemon's end", || daemon.process.try_wait().unwrap());
    assert!(status.success());
    assert_eq!(
        std::fs::read_dir(&daemon.folder).unwrap().count(),
        0,
        "sockets left behind"
    );
}

#[test]
fn a_front_end_may_hand_its_socket_down() {
    let (front, back) = UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&back, rustix::io::FdFlags::empty()).unwrap();
    let mut process = Process::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
        .args(["--fd", &back.as_raw_fd().to_string()])
        .spawn()
        .unwrap();
    drop(back);
    drop(Guest::negotiate_over(front, USUAL, 3));
    let status = rig::eventually("the daemon's end", || process.try_wait().unwrap());
    assert!(status.success());
}

#[test]
fn capabilities_are_printed_and_a_bad_file_descriptor_fails_early() {
    let program = env!("CARGO_BIN_EXE_vhost-device-balloon");
    let output = Process::new(program)
        .arg("--print-capabilities")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"{\"type\":\"balloon\",\"features\":[]}\n");
    let output = Process::new(program)
        .args(["--fd", "777"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("777"));
}
