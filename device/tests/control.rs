// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Honest and hostile messages of migrators on the control socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::os::fd::OwnedFd;

use rig::guest::{Daemon, Guest, MIB, PAGES, USUAL};
use rig::migrator::{Migrator, map_file, memfd};
use rig::queue::Buffer;
use spec::balloon::Command;
use spec::control::{HEADER_BYTES, Header, MAX_PAYLOAD, Refusal, Reply, Request, VERSION};
use spec::hint_map::HintPhase;

fn hello(migrator: &mut Migrator) -> Reply {
    migrator.ask(Request::Hello { version: VERSION })
}

#[test]
fn the_features_are_those_of_the_guest_and_none_without_one() {
    let daemon = Daemon::start(&[]);
    let mut migrator = Migrator::connect_only(&daemon.control());
    let features = 0;
    assert_eq!(
        hello(&mut migrator),
        Reply::Hello {
            version: VERSION,
            features
        }
    );
    let _guest = Guest::boot(&daemon, USUAL, 3);
    let features = USUAL;
    assert_eq!(
        hello(&mut migrator),
        Reply::Hello {
            version: VERSION,
            features
        }
    );
}

#[test]
fn a_stranger_or_another_version_is_refused_and_hung_up_on() {
    let daemon = Daemon::start(&[]);
    for request in [
        Request::Status,
        Request::Done,
        Request::Hello {
            version: VERSION + 1,
        },
    ] {
        let mut migrator = Migrator::connect_only(&daemon.control());
        assert_eq!(migrator.ask(request), Reply::Refused(Refusal::Version));
        assert!(migrator.is_hung_up_on());
    }
}

#[test]
fn garbage_is_refused_and_hung_up_on_and_the_next_migrator_is_served() {
    let daemon = Daemon::start(&[]);
    let unknown = Header {
        kind: 77,
        sequence: 5,
        length: 0,
    }
    .to_bytes();
    let reply = Header {
        kind: 0x82,
        sequence: 5,
        length: 0,
    }
    .to_bytes();
    let wrong_length = [
        &Header {
            kind: 6,
            sequence: 5,
            length: 1,
        }
        .to_bytes()[..],
        &[0],
    ]
    .concat();
    let mut too_long = unknown;
    too_long[12..].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
    for (garbage, sequence) in [
        (&b"GET / HTTP/1.1\r\n"[..], 0),
        (&[0xff; HEADER_BYTES], 0),
        (&too_long, 0),
        (&unknown, 5),
        (&reply, 5),
        (&wrong_length, 5),
    ] {
        let mut migrator = Migrator::connect_only(&daemon.control());
        migrator.send_raw(garbage);
        assert_eq!(
            migrator.reply(),
            (sequence, Reply::Refused(Refusal::BadFrame))
        );
        assert!(migrator.is_hung_up_on());
    }
    let mut migrator = Migrator::connect_only(&daemon.control());
    assert!(matches!(hello(&mut migrator), Reply::Hello { .. }));
}

#[test]
fn file_descriptors_where_none_belong_are_a_bad_frame() {
    let daemon = Daemon::start(&[]);
    let file = || -> OwnedFd { memfd(4096) };
    for (request, files) in [
        (Request::Status, vec![file()]),
        (Request::SetHintMap { bytes: 4096 }, vec![]),
        (Request::SetHintMap { bytes: 4096 }, vec![file(), file()]),
    ] {
        let mut migrator = Migrator::connect_only(&daemon.control());
        hello(&mut migrator);
        let reply = migrator.ask_with(request, &files);
        assert_eq!(reply, Reply::Refused(Refusal::BadFrame));
        assert!(migrator.is_hung_up_on());
    }
}

#[test]
fn a_file_that_is_not_a_hint_map_is_refused_and_the_connection_goes_on() {
    let daemon = Daemon::start(&[]);
    let mut migrator = Migrator::connect_only(&daemon.control());
    hello(&mut migrator);
    let (map, bytes, _) = map_file(PAGES);
    let (pipe, _) = std::io::pipe().unwrap();
    for (file, bytes) in [
        (memfd(8192), 8192),                   // zeroes
        (map.try_clone().unwrap(), bytes + 1), // shorter than announced
        (map.try_clone().unwrap(), bytes - 8), // announced shorter than its header says
        (map.try_clone().unwrap(), 0),
        (pipe.into(), 4096),
    ] {
        let reply = migrator.ask_with(Request::SetHintMap { bytes }, &[file]);
        assert_eq!(reply, Reply::Refused(Refusal::HintMap));
    }
    let _guest = Guest::boot(&daemon, USUAL, 3);
    assert_eq!(migrator.open_refused(1), Refusal::HintMap);
    assert_eq!(
        migrator.ask_with(Request::SetHintMap { bytes }, &[map]),
        Reply::Ok
    );
    migrator.open(1);
    let (map, bytes, _) = map_file(PAGES);
    let reply = migrator.ask_with(Request::SetHintMap { bytes }, &[map]);
    assert_eq!(reply, Reply::Refused(Refusal::EpochOpen));
}

#[test]
fn a_map_smaller_than_the_guest_takes_the_pages_it_has_room_for() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let (file, bytes, map) = map_file(8 * MIB / 4096 + 3);
    assert_eq!(
        migrator.ask_with(Request::SetHintMap { bytes }, &[file]),
        Reply::Ok
    );
    let id = migrator.open(1);
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(8 * MIB, 1 << 20)]);
    guest.hints.send(&[Buffer::In(32 * MIB, 1 << 20)]);
    let report = migrator.close(1);
    assert_eq!((report.hints, report.pages, report.rejected), (1, 3, 1));
    assert_eq!(map.load(32).pages(), 0b111);
}

#[test]
fn invalid_epochs_are_refused() {
    let daemon = Daemon::start(&[]);
    let _guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.open_refused(0), Refusal::NoSuchEpoch);
    migrator.open(1);
    assert_eq!(migrator.open_refused(1), Refusal::EpochOpen);
    for epoch in [0, 2, u64::MAX] {
        let reply = migrator.ask(Request::Close { epoch });
        assert_eq!(reply, Reply::Refused(Refusal::NoSuchEpoch));
    }
    migrator.close(1);
    assert_eq!(
        migrator.ask(Request::Close { epoch: 1 }),
        Reply::Refused(Refusal::NoSuchEpoch)
    );
}

#[test]
fn the_guest_is_told_done_when_its_migrator_hangs_up_or_sends_garbage() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    for epoch in 1..=3 {
        let mut migrator = Migrator::connect(&daemon.control());
        let id = migrator.open(epoch);
        assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
        guest.start_round(id);
        if epoch == 2 {
            migrator.send_raw(&[0xff; 100]);
        }
        let map = migrator.hang_up();
        assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
        rig::eventually("the map's end", || {
            (map.phase() == HintPhase::Done).then_some(())
        });
        guest.hints.send(&[Buffer::In(8 * MIB, 4096)]);
        assert_eq!((map.epoch(), map.load(32).pages()), (0, 0));
    }
}

#[test]
fn a_migrator_that_only_asks_does_not_disturb_the_guest() {
    let daemon = Daemon::start(&[]);
    let guest = Guest::boot(&daemon, USUAL, 3);
    drop(Migrator::connect(&daemon.control()));
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.status().phase, HintPhase::Closed);
    assert!(guest.is_left_alone());
}
