// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest whose vCPUs log their writes in rings, which are emptied now and then.

use super::*;

/// The good migration, whose first harvest brings page 0, with page `page` taken out of a ring just `before`.
fn taken(page: u64, before: Event) -> Vec<Record> {
    let mut records = migration();
    let at = place(&records, before);
    let event = Event::RingTaken(bits(1 << page));
    records.splice(at..at, on(SOURCE, [event]));
    records
}

#[test]
fn a_page_that_was_taken_out_of_a_ring_is_brought_by_the_next_harvest() {
    let verdict = verdict(&taken(0, Event::HarvestBegin(false)));
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
    assert_broken(
        &taken(1, Event::HarvestBegin(false)),
        Clause::HarvestEverything,
        Event::LogHarvested(VCPUS),
    );
}

#[test]
fn a_page_that_is_taken_while_a_harvest_is_under_way_is_for_the_next_one() {
    let verdict = verdict(&taken(0, brought(VCPUS, 0b0001)));
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
}

#[test]
fn what_was_taken_before_the_log_was_started_is_forgotten() {
    let verdict = verdict(&taken(3, Event::LogStarted(VCPUS)));
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
}
