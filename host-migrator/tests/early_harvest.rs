// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Early harvests: a page that is written before it is copied is sent once. Only a copy makes an early page clean.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;

use host_migrator::MigrationParams;
use software_guest::balloon::Balloon;
use software_guest::memory::{Memory, one};
use software_guest::{Guest, Outcome, migrate, rounds};
use spec::PageRange;

/// Pages, all in use: enough for an early harvest well before a round's last pages.
const PAGES: u64 = 6000;
/// The last pages, which a sender in address order sends last.
const LAST: u64 = PAGES - 1;

fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(PAGES, 0));
    for pfn in 0..PAGES {
        guest.write(pfn);
    }
    Arc::new(guest)
}

fn params(early_harvests: u32) -> MigrationParams {
    MigrationParams::default().with_early_harvests(early_harvests)
}

fn assert_exact(guest: &Guest, outcome: &Outcome) {
    outcome.report();
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
}

/// A guest that writes its last hundred pages before any page is sent.
fn writes_before_it_is_copied(early_harvests: u32) -> Outcome {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            (PAGES - 100..PAGES).for_each(|pfn| theirs.write(pfn));
        }
        theirs.hints.finish();
    });
    let outcome = migrate(guest.source(), params(early_harvests));
    assert_exact(&guest, &outcome);
    outcome
}

#[test]
fn a_page_written_before_it_is_copied_is_sent_once() {
    let outcome = writes_before_it_is_copied(8);
    let totals = &outcome.report().totals;
    assert_eq!((totals.pages_sent, totals.pages_resent), (PAGES, 0));
    assert_eq!(totals.pages_written_before_copy, 100);
}

#[test]
fn without_early_harvests_it_is_sent_twice() {
    let outcome = writes_before_it_is_copied(0);
    let totals = &outcome.report().totals;
    assert_eq!((totals.pages_sent, totals.pages_resent), (PAGES + 100, 100));
    assert_eq!(totals.pages_written_before_copy, 0);
}

#[test]
fn a_page_written_after_its_hint_and_found_early_is_sent_all_the_same() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            theirs.hints.hint(one(LAST));
            theirs.write(LAST);
        }
        theirs.hints.finish();
    });
    let outcome = migrate(guest.source(), params(8));
    assert_exact(&guest, &outcome);
    let rounds = &outcome.report().rounds;
    assert_eq!((rounds[0].pages_hinted, rounds[0].dirty_harvested), (1, 1));
    assert_eq!(rounds[1].pages_sent, 1);
}

#[test]
fn a_hole_that_was_written_and_found_early_is_sent() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        match epoch {
            1 => (0..4000).for_each(|pfn| theirs.write(pfn)),
            // The migrator has asked for the holes, and the guest takes one of them into use.
            2 => theirs.write(LAST),
            _ => {}
        }
        theirs.hints.finish();
    });
    let mut source = guest.source();
    let taken = PageRange::new(PAGES - 100, 100).unwrap();
    source.logs.push(Box::new(Balloon::new(&guest, taken)));
    // The only early harvest of the first round comes when half is sent, so the second round has that half to send.
    let params = rounds(3).with_early_harvests(2);
    let outcome = migrate(source, params);
    assert_exact(&guest, &outcome);
    let rounds = &outcome.report().rounds;
    assert_eq!(rounds[1].pages_zero, 99);
    assert_eq!(rounds[1].pages_written_before_copy, 1);
}
