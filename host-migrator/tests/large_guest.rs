// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A large guest over TCP, to show what hints save.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::{
    Connection, Listener, Migration, MigrationParams, MigrationReport, OwnershipRecord,
    PageSources, receive,
};
use software_guest::Guest;
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like};
use spec::PageRange;

/// Pages: 512 MiB of memory, of which 384 MiB were written and freed, and 64 MiB are in use.
const PAGES: u64 = 128 << 10;
const FREED: u64 = 96 << 10;
const IN_USE: u64 = 16 << 10;

fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(PAGES, 0));
    for pfn in 0..FREED + IN_USE {
        guest.write(pfn);
        if pfn < FREED {
            guest.memory.free(pfn);
        }
    }
    Arc::new(guest)
}

/// Migrates over TCP. The guest answers in blocks of 4 MiB, one every 100 microseconds.
fn migrate(use_hints: bool) -> MigrationReport {
    let guest = guest();
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let ram = Arc::new(like(&guest.memory.ram));
    let theirs = Arc::clone(&ram);
    let destination = thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let channel = listener.accept(Some(Duration::from_secs(10))).unwrap();
        let ownership = OwnershipRecord::there();
        receive(channel, &theirs, &mut machine, &ownership, &mut |_| ()).unwrap();
    });
    let hinting = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        let guest = Arc::clone(&hinting);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(2));
            for first in (0..FREED).step_by(1024) {
                if guest.hints.epoch() == epoch {
                    guest.hints.hint(PageRange::new(first, 1024).unwrap());
                }
                thread::sleep(Duration::from_micros(100));
            }
            guest.hints.finish();
        });
    });
    let params = MigrationParams::default().with_sources(if use_hints {
        PageSources::ALL
    } else {
        PageSources::ALL.without_hints()
    });
    let channel = Connection::connect(&address, Duration::from_secs(10)).unwrap();
    let (_, report) = Migration::start(guest.source(), params, channel)
        .unwrap()
        .join();
    let report = report.unwrap();
    destination.join().unwrap();
    assert_eq!(
        guest.memory.wrong_pages(&ram, report.skipped.as_deref()),
        []
    );
    report
}

#[test]
fn a_guest_that_hints_faster_than_the_channel_sends_is_waited_for() {
    let with = migrate(true);
    let without = migrate(false);
    assert_eq!(without.totals.pages_sent, FREED + IN_USE);
    let overhead = with.wire_bytes as f64 / (IN_USE * 4096) as f64;
    assert!(overhead < 1.15, "{overhead}");
}
