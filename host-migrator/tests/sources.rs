// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each source of pages that need not be sent is counted on its own and can be switched off on its own.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;

use host_migrator::{MigrationParams, PageSource, PageSources, PagesBySource};
use software_guest::balloon::Balloon;
use software_guest::memory::{Memory, one};
use software_guest::{Guest, Outcome, migrate, rounds};
use spec::PageRange;

/// Pages of the guest's two regions.
const LOW: u64 = 1000;
const HIGH: u64 = 500;
/// In use, with content.
const USED: PageRange = range(0, 100);
/// In use, and written with zeros.
const ZEROS: PageRange = range(100, 10);
/// Freed with their content. The driver hints the first 64 pages, the agent the last 64.
const FREED: PageRange = range(200, 96);
const DRIVERS: PageRange = range(200, 64);
const AGENTS: PageRange = range(232, 64);
/// Given back to the host: all of the first range and most of the second, whose first page is in use again.
const BALLOONED: PageRange = range(400, 50);
const REPORTED: PageRange = range(500, 30);
const REVIVED: u64 = 500;

const fn range(first: u64, count: u64) -> PageRange {
    match PageRange::new(first, count) {
        Some(range) => range,
        None => panic!(),
    }
}

fn pages(range: PageRange) -> impl Iterator<Item = u64> {
    range.first()..range.end()
}

fn guest() -> Arc<Guest> {
    let guest = Arc::new(Guest::new(Memory::new(LOW, HIGH)));
    for pfn in pages(USED).chain(pages(FREED)).chain([REVIVED]) {
        guest.write(pfn);
    }
    for pfn in pages(ZEROS) {
        guest.write_zeros(pfn);
    }
    for pfn in pages(FREED) {
        guest.memory.free(pfn);
    }
    guest.hints.has_given_up(BALLOONED, REPORTED);
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            theirs.hints.hint(DRIVERS);
            theirs.hints.hint_by_agent(AGENTS);
        }
        theirs.hints.finish();
    });
    guest
}

fn migrate_with(sources: PageSources) -> (Arc<Guest>, Outcome) {
    let guest = guest();
    let params = MigrationParams::default().with_sources(sources);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    (guest, outcome)
}

/// Counts with what `set` sets.
fn counts(set: impl FnOnce(&mut PagesBySource)) -> PagesBySource {
    let mut counts = PagesBySource::default();
    set(&mut counts);
    counts
}

/// Pages that were never touched.
fn holes() -> u64 {
    let written = [USED, ZEROS, FREED].map(PageRange::count);
    let given_up = BALLOONED.count() + REPORTED.count();
    LOW + HIGH - written.iter().sum::<u64>() - given_up
}

#[test]
fn each_source_is_counted_for_what_it_removed() {
    let (_, outcome) = migrate_with(PageSources::ALL);
    let report = outcome.report();
    let expected = counts(|pages| {
        (pages.driver, pages.agent, pages.both) = (32, 32, 32);
        pages.holes = holes();
        pages.balloon = BALLOONED.count();
        pages.reported = REPORTED.count() - 1;
        pages.zero = ZEROS.count();
    });
    assert_eq!(report.totals.pages_by_source, expected);
    assert_eq!(report.rounds[0].pages_by_source, expected);
    assert_eq!(report.hints.pages_by_source, expected);
    assert_eq!(report.totals.pages_hinted, 96);
    assert_eq!(report.totals.pages_sent, USED.count() + 1);
    assert_eq!(report.totals.too_late_by_source, PagesBySource::default());
    assert_eq!(report.skipped.as_ref().unwrap().count(), 96);
}

#[test]
fn a_source_that_is_not_chosen_removes_nothing() {
    let (_, all) = migrate_with(PageSources::ALL);
    let all = all.report().totals.pages_by_source;
    for source in PageSource::ALL {
        let (_, outcome) = migrate_with(PageSources::ALL.without(source));
        let found = outcome.report().totals.pages_by_source;
        // A page that is not skipped as a hole is still found to be zero. A page that both driver and agent report
        // needs only one of them.
        let mut expected = all;
        match source {
            PageSource::Driver => {
                (expected.driver, expected.both) = (0, 0);
                expected.agent += all.both;
            }
            PageSource::Agent => {
                (expected.agent, expected.both) = (0, 0);
                expected.driver += all.both;
            }
            PageSource::Holes => {
                expected.holes = 0;
                expected.zero += all.holes;
            }
            PageSource::Balloon => {
                expected.balloon = 0;
                expected.zero += all.balloon;
            }
            PageSource::Reported => {
                expected.reported = 0;
                expected.zero += all.reported;
            }
            PageSource::Zero => expected.zero = 0,
            other => panic!("nobody has said what {other} does"),
        }
        assert_eq!(found, expected, "without {source}");
    }
}

#[test]
fn pages_that_the_balloon_takes_during_a_migration_are_counted_as_ballooned() {
    // Pages in use. The balloon gets the first eighty when the first round ends.
    let taken = range(0, 80);
    for (sources, of_balloon) in [
        (PageSources::ALL, 80),
        (PageSources::ALL.without(PageSource::Balloon), 0),
    ] {
        let guest = guest();
        guest.hints.has_given_up(taken, REPORTED);
        let mut source = guest.source();
        source.logs.push(Box::new(Balloon::new(&guest, taken)));
        let params = rounds(2).with_sources(sources);
        let outcome = migrate(source, params);
        assert_eq!(outcome.wrong_pages(&guest.memory), []);
        let second = &outcome.report().rounds[1];
        assert_eq!(second.pages_zero, 80);
        let expected = counts(|pages| (pages.balloon, pages.zero) = (of_balloon, 80 - of_balloon));
        assert_eq!(second.pages_by_source, expected);
    }
}

#[test]
fn without_any_source_every_page_crosses_the_wire() {
    let (_, outcome) = migrate_with(PageSources::NONE);
    let totals = &outcome.report().totals;
    assert_eq!(totals.pages_sent, LOW + HIGH);
    assert_eq!(totals.pages_by_source, PagesBySource::default());
}

#[test]
fn hints_that_come_too_late_and_pages_that_come_back_are_counted_for_their_source() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        match epoch {
            1 => {
                theirs.hints.hint(DRIVERS);
                theirs.hints.hint_by_agent(AGENTS);
                // The guest takes one page of each into use again: a hole, and one of the balloon.
                for pfn in [200, 240, 295, 900, BALLOONED.first()] {
                    theirs.write(pfn);
                }
            }
            // Both have been sent by now.
            2 => {
                theirs.memory.free(10);
                theirs.hints.hint(one(10));
                theirs.memory.free(11);
                theirs.hints.hint_by_agent(one(11));
            }
            _ => {}
        }
        theirs.hints.finish();
    });
    let params = rounds(2);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    let report = outcome.report();
    let too_late = counts(|pages| (pages.driver, pages.agent) = (1, 1));
    assert_eq!(report.rounds[1].too_late_by_source, too_late);
    assert_eq!(report.totals.pages_hinted_too_late, 2);
    let back = counts(|pages| {
        (pages.driver, pages.agent, pages.both) = (1, 1, 1);
        (pages.holes, pages.balloon) = (1, 1);
    });
    assert_eq!(report.totals.back_dirty_by_source, back);
}
