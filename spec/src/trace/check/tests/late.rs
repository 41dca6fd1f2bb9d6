// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that are discarded because they were hinted after they had been sent.

use super::*;

const LATE: Event = Event::LateDiscard(PageBits {
    word: 0,
    mask: 0b0001,
});

/// The good migration, whose page 0 is hinted in the first round after it was sent. It is discarded before `next`.
fn discarded_before(next: Event) -> Vec<Record> {
    let mut records = migration();
    let at = place(&records, Event::DeviceClosed(1));
    records.splice(at..at, on(SOURCE, [hint(1, 0)]));
    let at = place(&records, next);
    let discard = [LATE, Event::DiscardSent(pages(0, 1))];
    records.splice(at..at, on(SOURCE, discard));
    records
}

#[test]
fn a_page_may_be_discarded_until_its_hint_is_forgotten() {
    for next in [Event::DeviceClosed(1), Event::Closed(1), Event::Forgotten] {
        let verdict = verdict(&discarded_before(next));
        assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
    }
    for next in [
        Event::HarvestBegin(false),
        Event::HarvestEnd,
        Event::Open(2),
    ] {
        assert_broken(&discarded_before(next), Clause::CloseBeforeHarvest, LATE);
    }
    // A page that was not hinted.
    forbids(LATE, Event::Closed(1), Clause::CloseBeforeHarvest);
}

#[test]
fn what_is_to_be_discarded_has_been_discarded_at_the_harvest() {
    let mut records = discarded_before(Event::Forgotten);
    let at = place(&records, LATE);
    records.remove(at + 1);
    assert_broken(&records, Clause::ReadsAsZero, Event::HarvestBegin(false));
}

#[test]
fn a_page_whose_write_an_early_harvest_took_away_is_not_discarded() {
    let mut records = discarded_before(Event::Closed(1));
    let early = [
        Event::EarlyBegin,
        brought(VCPUS, 0b0001),
        Event::LogHarvested(VCPUS),
        Event::EarlyEnd,
    ];
    let at = place(&records, Event::Copy(bits(0b1001)));
    let mut before_the_copy = records.clone();
    before_the_copy.splice(at..at, on(SOURCE, early));
    assert_broken(&before_the_copy, Clause::HarvestEverything, LATE);
    // After the copy, its write is still to be sent.
    let at = place(&records, Event::RoundSent(1));
    records.splice(at..at, on(SOURCE, early));
    let verdict = verdict(&records);
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
}

#[test]
fn pages_are_discarded_while_other_discards_are_under_way() {
    let mut records = discarded_before(Event::Closed(1));
    let at = place(&records, LATE);
    let other = Event::LateDiscard(PageBits {
        word: 0,
        mask: 0b1000,
    });
    let hint_at = place(&records, hint(1, 0));
    records.splice(
        at..at,
        on(
            SOURCE,
            [Event::Drained, other, Event::DiscardSent(pages(3, 1))],
        ),
    );
    records.splice(hint_at..hint_at, on(SOURCE, [hint(1, 3)]));
    let at = place(&records, Event::Open(1));
    records.splice(at..at, on(SOURCE, [Event::Channels(2)]));
    // A harvest and the hand-over need all of them to be there.
    let needs = |event: Event| matches!(event, Event::HarvestBegin(_) | Event::HandOver);
    let drained = records.into_iter().flat_map(|record| {
        let before = needs(record.event).then(|| on(SOURCE, [Event::Drained]));
        before.into_iter().flatten().chain([record])
    });
    let records: Vec<Record> = drained.collect();
    let verdict = verdict(&records);
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
}

#[test]
fn a_page_that_is_under_way_on_a_channel_is_not_discarded() {
    let mut records = discarded_before(Event::Closed(1));
    let at = place(&records, Event::Open(1));
    records.splice(at..at, on(SOURCE, [Event::Channels(2)]));
    assert_broken(&records, Clause::OnePageOneOrder, LATE);
}
