// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Harvests in the middle of a round: early ones, and those of a background sync.

use std::vec::Vec;

use super::*;

/// The good migration with an early harvest before `next`, that brings `mask`.
fn with_early_harvest(next: Event, mask: u64) -> Vec<Record> {
    let mut records = migration();
    let at = place(&records, next);
    let harvest = [
        Event::EarlyBegin,
        brought(VCPUS, mask),
        Event::LogHarvested(VCPUS),
        Event::EarlyEnd,
    ];
    records.splice(at..at, on(SOURCE, harvest));
    records
}

#[test]
fn clause_4_what_an_early_harvest_brings_is_answered_by_a_copy_and_by_nothing_else() {
    let clause = Clause::HarvestEverything;
    let first_claim = Event::Claim(bits(0b1011));
    let copied = with_early_harvest(first_claim, 0b1001);
    assert!(matches!(verdict(&copied), Verdict::Holds(_)));
    let copied_before = with_early_harvest(Event::PagesSent(1), 0b1000);
    assert_broken(&copied_before, clause, Event::HandOver);
    let skipped = with_early_harvest(Event::Claim(bits(0b0001)), 0b0001);
    assert_broken(&skipped, clause, Event::HandOver);
    // It clears what it has read before anything is copied, and takes the place of no other harvest.
    let mut half = with_early_harvest(first_claim, 0b1001);
    half.remove(place(&half, Event::EarlyEnd));
    assert_broken(&half, clause, first_claim);
    let mut instead = with_early_harvest(first_claim, 0b1001);
    let begin = place(&instead, Event::HarvestBegin(false));
    assert_eq!(instead[begin + 2].event, Event::LogHarvested(VCPUS));
    instead.remove(begin + 2);
    assert_broken(&instead, clause, Event::HarvestEnd);
}

/// [`migration`], whose second round asks for holes, takes page 0 for one, and harvests in the middle. That
/// brings page 0 again, which goes with content.
fn with_background_harvest() -> Vec<Record> {
    let harvest = [
        Event::HarvestBegin(false),
        brought(VCPUS, 0b0001),
        Event::LogHarvested(VCPUS),
        Event::LogHarvested(BACK_END),
        Event::HarvestEnd,
    ];
    let takes = |event| [Event::Claim(bits(1)), Event::Copy(bits(1)), event];
    let round = [Event::HolesAsked, Event::Open(2), Event::Published(2)]
        .into_iter()
        .chain(takes(Event::HoleTaken(bits(1))))
        .chain([Event::Zero(bits(1)), Event::ZeroSent(pages(0, 1))])
        .chain([Event::DeviceClosed(2), Event::Closed(2), Event::Forgotten])
        .chain(harvest)
        .chain([Event::Open(3), Event::Published(3)])
        .chain(takes(Event::PagesSent(1)))
        .chain([
            Event::RoundSent(2),
            Event::DeviceClosed(3),
            Event::Closed(3),
        ]);
    let mut records = migration();
    let opens = place(&records, Event::Open(2));
    let closed = place(&records, Event::Closed(2));
    records.splice(opens..=closed, on(SOURCE, round));
    let discarding = Event::GivenUp(pages(1, 1));
    let forgotten = records
        .iter()
        .rposition(|record| record.event == Event::Forgotten);
    let given_up = [discarding, Event::Discarding(pages(1, 1))];
    records.splice(forgotten.unwrap()..forgotten.unwrap(), on(SOURCE, given_up));
    records
}

#[test]
fn clause_3_a_background_harvest_ends_what_was_known_of_holes_and_waits_for_no_record() {
    let records = with_background_harvest();
    assert!(
        matches!(verdict(&records), Verdict::Holds(_)),
        "{:?}",
        verdict(&records)
    );

    let mut believed = records.clone();
    let copied = believed
        .iter()
        .rposition(|record| record.event == Event::PagesSent(1));
    believed[copied.unwrap()].event = Event::HoleTaken(bits(1));
    assert_broken(
        &believed,
        Clause::CloseBeforeHarvest,
        Event::HoleTaken(bits(1)),
    );

    let mut early = records.clone();
    let taken = place(&early, Event::HoleTaken(bits(1)));
    let harvest = [Event::EarlyBegin, brought(VCPUS, 0b0001), Event::EarlyEnd];
    early.splice(taken - 2..taken - 2, on(SOURCE, harvest));
    assert_broken(&early, Clause::HarvestEverything, Event::HoleTaken(bits(1)));

    let mut waiting = records;
    let sent = place(&waiting, Event::ZeroSent(pages(0, 1)));
    let record = waiting.remove(sent);
    let end = place(&waiting, Event::RoundSent(2));
    waiting.insert(end, record);
    assert_broken(&waiting, Clause::ReadsAsZero, Event::HarvestBegin(false));
}
