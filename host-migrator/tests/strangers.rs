// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A destination waits among strangers for a source that fits, and writes no memory for anybody else.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::collections::VecDeque;
use std::io::{Read, Write, copy};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use host_migrator::{Connection, Migration, MigrationParams};
use software_guest::Guest;
use software_guest::link::{Link, wire};
use software_guest::memory::{Memory, one};
use software_guest::waiting::{FOR_EVER, Waiting};
use spec::PAGE_SIZE;
use spec::stream::{GREETING_BYTES, Greeting, SectionHeader, SectionKind, StreamHeader};

const OLD: [u8; PAGE_SIZE as usize] = [7; PAGE_SIZE as usize];

/// A destination that waits for a guest like `guest`. Its memory has old content.
fn waiting(guest: &Guest) -> Waiting {
    let destination = Waiting::for_a_guest_like(guest);
    destination.ram.write(one(5), &OLD).unwrap();
    destination
}

fn assert_untouched(destination: &Waiting) {
    let mut page = [0; PAGE_SIZE as usize];
    destination.ram.read(one(5), &mut page).unwrap();
    assert_eq!(page, OLD, "memory was touched for a stranger");
}

/// Copies bytes between two streams until one of them ends.
fn relay(here: UnixStream, there: TcpStream) {
    let (mut from, mut to) = (here.try_clone().unwrap(), there.try_clone().unwrap());
    thread::spawn(move || {
        let _ = copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (there, here);
    thread::spawn(move || {
        let _ = copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[test]
fn strangers_that_hang_up_or_talk_nonsense_neither_end_the_wait_nor_touch_memory() {
    let guest = Guest::with_six_pages();
    let destination = waiting(&guest);
    drop(destination.stranger());
    let mut nonsense = destination.stranger();
    nonsense.write_all(&[b'G'; 4096]).unwrap();
    // It is refused: the connection ends or is reset.
    let _ = nonsense.read_to_end(&mut Vec::new());
    assert_untouched(&destination);
    destination.receives(&guest, MigrationParams::default());
}

#[test]
fn a_crowd_of_silent_strangers_does_not_lock_out_the_source() {
    let guest = Guest::with_six_pages();
    let destination = waiting(&guest);
    // One after the other, they would take longer than the source waits.
    let crowd: Vec<_> = (0..100).map(|_| destination.stranger()).collect();
    assert_untouched(&destination);
    destination.receives(&guest, MigrationParams::default());
    drop(crowd);
}

#[test]
fn a_source_that_has_begun_to_speak_is_not_pushed_out_by_silent_strangers() {
    let guest = Guest::with_six_pages();
    let destination = waiting(&guest);
    let mut source = destination.stranger();
    let mut greeting = [0; GREETING_BYTES];
    source.read_exact(&mut greeting).unwrap();
    let header = StreamHeader {
        session: Greeting::from_bytes(&greeting).unwrap().session,
        number: 0,
        ram_bytes: guest.memory.ram.pages() * PAGE_SIZE,
        regions: guest.memory.ram.regions().len() as u32,
        channels: 0,
        local: false,
        lanes: 0,
    };
    source.write_all(&header.to_bytes()).unwrap();
    // More than there are places for. They came after the source, so the oldest of them must give way.
    let mut crowd: Vec<_> = (0..150).map(|_| destination.stranger()).collect();
    let _ = crowd[0].read_to_end(&mut Vec::new());
    let mut sections = Vec::new();
    let introduction = [
        (SectionKind::Layout, guest.memory.ram.layout().to_bytes()),
        (SectionKind::Description, b"of another machine".to_vec()),
    ];
    for (sequence, (kind, payload)) in (0..).zip(introduction) {
        let header = SectionHeader {
            kind,
            sequence,
            round: 1,
            length: payload.len() as u64,
            payload_crc: crc32fast::hash(&payload),
        };
        sections.extend(header.to_bytes());
        sections.extend(payload);
    }
    source.write_all(&sections).unwrap();
    let mut answer = Vec::new();
    source.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("it needs another machine"), "{answer}");
    drop(crowd);
    destination.receives(&guest, MigrationParams::default());
}

#[test]
fn a_source_far_away_gets_through_while_strangers_flood() {
    let guest = Guest::with_six_pages();
    let destination = waiting(&guest);
    let address = destination.address.clone();
    let over = Arc::new(AtomicBool::new(false));
    let (tell, floods) = channel();
    let flood = {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            let mut crowd = VecDeque::new();
            while !over.load(Ordering::Acquire) {
                // The destination no longer listens once the guest has arrived.
                let Ok(stranger) = Connection::connect(&address, FOR_EVER) else {
                    continue;
                };
                crowd.push_back(stranger);
                if crowd.len() == 200 {
                    // Each has stayed for a while.
                    crowd.pop_front();
                    let _ = tell.send(());
                }
            }
        })
    };
    floods.recv().unwrap();
    // Greeting and answer each take 50 ms: time for many strangers.
    let far = Link {
        delay: Duration::from_millis(50),
        ..Link::default()
    };
    let (here, there) = wire(far.clone(), far);
    relay(there, destination.stranger());
    let connection = Connection::try_from(here).unwrap();
    let migration = Migration::start(guest.source(), MigrationParams::default(), connection);
    let (_, sent) = migration.unwrap().join();
    over.store(true, Ordering::Release);
    sent.unwrap();
    assert!(destination.thread.join().unwrap().unwrap());
    assert_eq!(guest.memory.wrong_pages(&destination.ram, None), []);
    flood.join().unwrap();
}

#[test]
fn a_source_whose_guest_does_not_fit_is_told_why_and_the_next_one_is_received() {
    let guest = Guest::with_six_pages();
    let destination = waiting(&guest);
    let other = Guest::new(Memory::new(80, 0));
    let channel = Connection::connect(&destination.address, FOR_EVER).unwrap();
    let migration = Migration::start(other.source(), MigrationParams::default(), channel).unwrap();
    let (_, result) = migration.join();
    let error = result.unwrap_err().to_string();
    assert!(error.contains("other memory"), "{error}");
    assert!(!other.machine.is_stopped());
    assert_untouched(&destination);
    destination.receives(&guest, MigrationParams::default());
}
