// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reported numbers: counts, rates and the expected downtime.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::{
    Connection, DirtyLog, DirtyLogError, LogSource, Migration, MigrationBitmap, MigrationParams,
    MigrationStatus, OwnershipRecord, PageSource, receive,
};
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like, one};
use software_guest::{Guest, migrate, rounds};
use spec::PageRange;

const PAGES: u64 = 1000;

/// A guest all of whose pages are in use.
fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(PAGES, 0));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    Arc::new(guest)
}

#[test]
fn a_page_that_is_hinted_too_late_repeatedly_counts_once() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        theirs.memory.free(6);
        theirs.memory.free(7);
        if epoch > 1 {
            theirs.hints.hint(one(6));
        }
        if epoch == 2 || epoch == 4 {
            theirs.hints.hint(one(7));
        }
        theirs.hints.finish();
        if epoch == 2 {
            // It is sent again, so a hint for it can be too late again.
            theirs.write(7);
        }
        // Another page, so that the next round has something to send.
        theirs.write(100 + epoch);
    });
    let params = rounds(5).with_map_rounds(true);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    let report = outcome.report();
    let too_late: Vec<u64> = (report.rounds.iter())
        .map(|round| round.pages_hinted_too_late)
        .collect();
    assert_eq!(too_late, [0, 2, 0, 1, 0, 0]);
    let maps = report.maps.as_ref().unwrap();
    let late: Vec<u64> = maps.rows.iter().map(|row| row.sum().late).collect();
    assert_eq!(late, too_late);
    assert_eq!(report.totals.too_late_by_source.driver, 3);
}

#[test]
fn a_page_in_two_logs_counts_once_and_the_last_round_brings_none() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            // Some pages are in both logs, the vCPUs' and the VMM's; some in one of them.
            theirs.write(5);
            theirs.write_by_vmm(5);
            theirs.write(6);
            theirs.write_by_vmm(7);
        }
        theirs.hints.finish();
    });
    let params = rounds(1).with_early_harvests(0);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    let report = outcome.report();
    assert_eq!(report.rounds[0].dirty_harvested, 3);
    assert_eq!(report.rounds[1].pending_before, 3);
    assert_eq!(report.rounds[1].dirty_harvested, 0);
    assert_eq!(report.totals.dirty_harvested, 3);
}

/// A log in which the same pages are dirty at every harvest. The harvest takes a while.
struct Busy {
    pages: PageRange,
    takes: Duration,
}

impl DirtyLog for Busy {
    fn source(&self) -> LogSource {
        LogSource::OwnWrites
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        thread::sleep(self.takes);
        bitmap.insert(self.pages);
        Ok(self.pages.count())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

fn busy(pages: u64, takes: Duration) -> Box<dyn DirtyLog> {
    let pages = PageRange::new(0, pages).unwrap();
    Box::new(Busy { pages, takes })
}

#[test]
fn a_guest_that_writes_faster_than_the_limit_is_stopped_if_the_link_is_fast_enough() {
    let guest = guest();
    let mut source = guest.source();
    // At the limit they take a second, which is longer than the downtime limit: rounds would never end.
    source.logs.push(busy(256, Duration::ZERO));
    let params = MigrationParams::default()
        .with_max_bandwidth(1 << 20)
        .with_sources([PageSource::Zero].into_iter().collect())
        .with_max_rounds(8);
    let outcome = migrate(source, params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    let report = outcome.report();
    assert!(report.rounds.len() <= 8, "{} rounds", report.rounds.len());
    assert!(report.expected_downtime_ms <= 300.0);
}

#[test]
fn the_expected_downtime_includes_the_parts_that_are_not_memory() {
    let guest = guest();
    let mut source = guest.source();
    source.logs.push(busy(10, Duration::from_millis(50)));
    let params = MigrationParams::default().with_besides_memory(Duration::from_millis(100));
    let outcome = migrate(source, params);
    let expected = outcome.report().expected_downtime_ms;
    assert!(expected >= 150.0, "{expected}");
}

#[test]
fn a_downtime_limit_that_the_other_parts_exceed_applies_to_memory_alone() {
    let guest = guest();
    let params = MigrationParams::default()
        .with_besides_memory(Duration::from_secs(3600))
        .with_max_rounds(100);
    let outcome = migrate(guest.source(), params);
    assert!(outcome.report().rounds.len() < 100);
}

#[test]
fn rates_are_absent_before_anything_was_measured_and_there_afterwards() {
    let rates = ["mbps", "pages-per-second"];
    let json = |status: &MigrationStatus| serde_json::to_value(status).unwrap();
    let guest = guest();
    let (here, there) = UnixStream::pair().unwrap();
    let channel = Connection::try_from(here).unwrap();
    let params = MigrationParams::default()
        // A page a second: with the first page nothing has been measured yet.
        .with_max_bandwidth(4096);
    let handle = Migration::start(guest.source(), params, channel).unwrap();
    let ram = like(&guest.memory.ram);
    let destination = thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let (channel, ownership) = (there.try_into().unwrap(), OwnershipRecord::there());
        receive(channel, &ram, &mut machine, &ownership, &mut |_| ()).unwrap_err();
    });
    let seen = |handle: &host_migrator::MigrationHandle, normal| loop {
        let status = handle.status();
        if status.ram.normal >= normal {
            return json(&status);
        }
        thread::sleep(Duration::from_millis(1));
    };
    let before = json(&MigrationStatus::default());
    for status in [&before, &json(&handle.status())] {
        assert!(rates.iter().all(|rate| status["ram"].get(rate).is_none()));
        assert!(status.get("expected-downtime").is_none());
    }
    let after = seen(&handle, 2);
    // At most the limit, which is the real rate.
    let mbps = after["ram"]["mbps"].as_f64().unwrap();
    assert!(mbps <= 4096.0 * 8.0 / 1e6, "{mbps}");
    assert!(handle.cancel());
    handle.join().1.unwrap_err();
    destination.join().unwrap();
}
