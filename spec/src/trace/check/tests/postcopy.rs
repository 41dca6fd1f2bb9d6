// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that are sent after the hand-over.

use super::*;

/// The good migration, whose last page is promised instead of sent.
fn promised() -> Vec<Record> {
    let mut records = migration();
    let sent = place(&records, Event::Claim(bits(0b0010)));
    assert_eq!(records[sent + 2].event, Event::PagesSent(1));
    let promise = Event::Promised(pages(1, 1));
    // The claim and the copy of the second page are found again: the first are of the first round.
    records.splice(sent..sent + 3, on(SOURCE, [promise]));
    records
}

#[test]
fn pages_of_a_stopped_guest_may_be_promised_instead_of_sent() {
    let verdict = verdict(&promised());
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
}

#[test]
fn pages_are_promised_only_after_the_last_harvest() {
    let mut records = promised();
    let promise = records.remove(place(&records, Event::Promised(pages(1, 1))));
    let before = place(&records, Event::HarvestBegin(true));
    records.insert(before, promise);
    assert_broken(&records, Clause::HarvestEverything, promise.event);
}

#[test]
fn a_page_that_is_neither_sent_nor_promised_is_missed_at_the_hand_over() {
    let mut records = promised();
    records.remove(place(&records, Event::Promised(pages(1, 1))));
    assert_broken(&records, Clause::HarvestEverything, Event::HandOver);
}
