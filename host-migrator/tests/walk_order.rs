// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The order in which the engine takes pages (`spec/sending-order.md`), as recorded in its trace.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use host_migrator::MigrationParams;
use software_guest::memory::Memory;
use software_guest::{Guest, Outcome, migrate, rounds};
use spec::PageRange;
use spec::trace::Event;

const PAGES: u64 = 640;

fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(PAGES, 0));
    (0..PAGES).for_each(|pfn| guest.write(pfn));
    Arc::new(guest)
}

fn pages(first: u64, count: u64) -> PageRange {
    PageRange::new(first, count).unwrap()
}

/// The words whose pages were copied in round `round`, in that order.
fn words_of_round(outcome: &Outcome, round: u64) -> Vec<u64> {
    let (records, _) = outcome.source.trace.records();
    let events: Vec<Event> = records
        .into_iter()
        .flatten()
        .map(|record| record.event)
        .collect();
    let end_of = |round| {
        events
            .iter()
            .position(|event| *event == Event::RoundSent(round))
    };
    let begin = end_of(round - 1).map_or(0, |at| at);
    events[begin..end_of(round).unwrap()]
        .iter()
        .filter_map(|event| match event {
            Event::Copy(bits) => Some(bits.word),
            _ => None,
        })
        .collect()
}

#[test]
fn pages_that_were_free_in_the_epoch_before_go_last() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            (0..64).for_each(|pfn| theirs.memory.free(pfn));
            theirs.hints.hint(pages(0, 64));
            // Used briefly, and written like pages that stay in use.
            for pfn in [3, 100, 600] {
                theirs.write(pfn);
            }
        }
        theirs.hints.finish();
    });
    let params = rounds(2);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    assert_eq!(words_of_round(&outcome, 1), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(words_of_round(&outcome, 2), [1, 9, 0]);
}

/// For how many milliseconds the sender holds back on a slow link. The agent reports every second page at once, and
/// ends its answer a while later. Of all pages below `answered`, it has already said whether they are free.
fn held_back(answered: u64) -> f64 {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch != 1 {
            return theirs.hints.finish();
        }
        for pfn in (0..PAGES).step_by(2) {
            theirs.memory.free(pfn);
            theirs.hints.hint_by_agent(pages(pfn, 1));
        }
        theirs.hints.has_answered(answered);
        let later = Arc::clone(&theirs);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            later.hints.finish();
        });
    });
    let params = MigrationParams::default().with_max_bandwidth(8 << 20);
    let outcome = migrate(guest.source(), params);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    let first = &outcome.report().rounds[0];
    assert_eq!(
        (first.pages_hinted, first.pages_sent),
        (PAGES / 2, PAGES / 2)
    );
    first.held_back_ms
}

#[test]
fn the_sender_waits_only_for_pages_that_the_agent_has_not_reported_on() {
    assert_eq!(held_back(PAGES), 0.0);
    assert!(held_back(0) > 0.0);
}
