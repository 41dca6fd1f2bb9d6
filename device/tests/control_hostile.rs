// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hostile clients of the control socket: they cost the device little and do not affect others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rig::guest::{Daemon, MIB};
use rig::migrator::memfd;
use rig::person::Person;
use rig::queue::Buffer;
use rustix::fs::{MemfdFlags, SealFlags, memfd_create};
use spec::control::{HEADER_BYTES, Refusal, Reply, Request, VERSION};
use spec_testing::control::frame;
use vhost_device_balloon::sockets;

/// More connections than the device serves at a time.
const MANY: usize = 40;

#[test]
fn ten_thousand_connections_cost_no_file_descriptors_and_the_migrator_nothing() {
    let daemon = Daemon::start(&[]);
    let (mut guest, mut migrator, _) = rig::hinting(&daemon);
    let before = daemon.descriptors();
    let mut crowd = std::collections::VecDeque::new();
    for _ in 0..10_000 {
        crowd.push_back(UnixStream::connect(daemon.control()).unwrap());
        if crowd.len() > MANY {
            crowd.pop_front();
        }
    }
    let mut person = Person::connect(&daemon.control());
    assert!(daemon.descriptors() <= before + MANY);
    guest.hints.send(&[Buffer::In(8 * MIB, 4096)]);
    person.hints(Request::HintState);
    assert_eq!(migrator.close(1).pages, 1);
    drop((crowd, person));
    rig::eventually("the end of all connections", || {
        (daemon.descriptors() <= before).then_some(())
    });
}

#[test]
fn connections_with_half_a_frame_hold_up_nobody_and_are_closed_first() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut migrator, _) = rig::hinting(&daemon);
    let mut person = Person::connect(&daemon.control());
    let mut crowd: Vec<UnixStream> = Vec::new();
    for length in (1..HEADER_BYTES + 4).cycle().take(MANY) {
        let mut stream = UnixStream::connect(daemon.control()).unwrap();
        let whole = frame(Request::Hello { version: VERSION }, 1);
        stream.write_all(&whole[..length]).unwrap();
        crowd.push(stream);
    }
    person.hints(Request::HintState);
    let mut late = Person::connect(&daemon.control());
    late.hints(Request::HintState);
    // The first ones see that they were hung up on. The last ones still have time.
    assert_eq!(crowd[0].read(&mut [0]).unwrap_or(0), 0);
    assert_eq!(migrator.close(1).epoch, 1);
}

#[test]
fn a_client_that_never_reads_holds_up_no_other() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut migrator, _) = rig::hinting(&daemon);
    let deaf = Person::connect(&daemon.control());
    deaf.stream.set_nonblocking(true).unwrap();
    let many = frame(Request::Status, 1).repeat(100);
    // Until the buffers of both directions are full.
    let mut stuck = 0;
    while stuck < 1000 {
        match (&deaf.stream).write(&many) {
            Ok(_) => stuck = 0,
            Err(_) => stuck += 1,
        }
        migrator.status();
    }
    let mut person = Person::connect(&daemon.control());
    person.hints(Request::HintState);
    assert_eq!(migrator.close(1).epoch, 1);
}

#[test]
fn a_client_that_floods_takes_turns_with_the_others() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut migrator, _) = rig::hinting(&daemon);
    let mut flood = Person::connect(&daemon.control());
    let (ends, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let sender = flood.stream.try_clone().unwrap();
    let many = frame(Request::Status, 1).repeat(64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // More is always waiting to be read, so the device never finds this connection empty.
            while !ends.load(Ordering::Relaxed) {
                (&sender).write_all(&many).unwrap();
            }
            sender.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            while flood.next_reply().is_some() {
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        let answered = || answered.load(Ordering::Relaxed);
        for _ in 0..20 {
            let before = answered();
            rig::eventually("the flood's answers", || {
                (answered() > before + 100).then_some(())
            });
            assert_eq!(migrator.status().epoch, 1);
        }
        assert_eq!(migrator.close(1).epoch, 1);
        ends.store(true, Ordering::Relaxed);
    });
}

#[test]
fn file_descriptors_that_come_with_requests_are_closed() {
    let daemon = Daemon::start(&[]);
    let (_guest, mut migrator, _) = rig::hinting(&daemon);
    let before = daemon.descriptors();
    let file = memfd(4096);
    for request in [
        Request::Hello { version: VERSION },
        Request::SetHintMap { bytes: 4096 },
        Request::Status,
        Request::HintStart,
        Request::Done,
    ] {
        for count in [1, 2, sockets::MAX_FDS] {
            let files: Vec<OwnedFd> = (0..count).map(|_| file.try_clone().unwrap()).collect();
            for _ in 0..20 {
                let stream = UnixStream::connect(daemon.control()).unwrap();
                // Half a frame each: its file descriptors must not be kept while the rest is awaited.
                sockets::send(&stream, &frame(request, 1)[..8], &files).unwrap();
                sockets::send(&stream, &frame(request, 1)[8..], &files).unwrap();
            }
        }
    }
    let mut person = Person::connect(&daemon.control());
    person.hints(Request::HintState);
    drop(person);
    rig::eventually("all of them closed", || {
        (daemon.descriptors() <= before).then_some(())
    });
    assert_eq!(migrator.close(1).epoch, 1);
}

#[test]
fn nothing_is_left_of_clients_that_come_and_go() {
    let daemon = Daemon::start(&[]);
    let (mut guest, migrator, _) = rig::hinting(&daemon);
    drop(migrator);
    rig::eventually("the guest's release", || {
        (guest.config().free_page_hint_cmd_id == 1).then_some(())
    });
    let before = daemon.descriptors();
    for _ in 0..300 {
        let mut person = Person::connect(&daemon.control());
        person.hints(Request::HintStart);
        person.page_map(spec::control::PageSet::Hinted);
        person.hints(Request::HintStop);
    }
    rig::eventually("the end of all connections", || {
        (daemon.descriptors() <= before).then_some(())
    });
}

#[test]
fn a_hint_map_of_huge_pages_that_the_host_does_not_have_is_refused() {
    let mut daemon = Daemon::start(&[]);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    let Ok(file) = memfd_create("hint-map", flags) else {
        return spec_testing::skipped("this kernel has no huge pages for memory files");
    };
    let bytes = 2 << 20;
    rustix::fs::ftruncate(&file, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    let mut person = Person::connect(&daemon.control());
    let reply = person.ask_with(Request::SetHintMap { bytes }, &[file]);
    assert_eq!(reply, Reply::Refused(Refusal::HintMap));
    assert!(daemon.lives());
    rig::hinting(&daemon);
}
