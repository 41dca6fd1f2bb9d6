// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that both sides of a local hand-over map.

use super::*;

const CLAUSE: Clause = Clause::LentMemory;
const THIRD: u16 = 3;

/// A device discards a page that its guest gave up.
fn discards(host: u16) -> impl Iterator<Item = Record> {
    on(
        host,
        [Event::GivenUp(pages(1, 1)), Event::Discarding(pages(1, 1))],
    )
}

/// The guest of `source` goes to `destination` with its memory, up to the hand-over.
fn lent(source: u16, destination: u16) -> Vec<Record> {
    let stops = [Event::Stopped, Event::Paused, Event::DevicesStopped];
    on(source, [Event::Begin(0), Event::Lent])
        .chain(discards(source))
        .chain(on(source, stops))
        .chain(on(destination, [Event::Loaded]))
        .chain(on(source, [Event::HandOver]))
        .collect()
}

fn arrived(source: u16, destination: u16) -> Vec<Record> {
    let mut records = lent(source, destination);
    records.extend(on(destination, [Event::TakenOver, Event::Run]));
    records.extend(on(source, [Event::End(Outcome::Completed)]));
    records
}

#[test]
fn memory_goes_from_host_to_host_and_each_owner_may_discard_in_it() {
    let mut records: Vec<_> = on(SOURCE, [Event::Run]).collect();
    records.extend(arrived(SOURCE, DESTINATION));
    records.extend(arrived(DESTINATION, THIRD));
    records.extend(discards(THIRD));
    let back = arrived(THIRD, SOURCE);
    // A host that gave the guest away and has it again runs it again in a process of its own.
    records.extend(back.into_iter().filter(|record| record.event != Event::Run));
    records.extend(discards(SOURCE));
    assert!(
        matches!(verdict(&records), Verdict::Holds(_)),
        "{}",
        verdict(&records)
    );
}

#[test]
fn a_guest_whose_memory_is_lent_is_handed_over_when_all_who_write_are_stopped() {
    for stop in [Event::Paused, Event::DevicesStopped] {
        let mut records = arrived(SOURCE, DESTINATION);
        records.retain(|record| record.event != stop && record.event != Event::DevicesStopped);
        assert_broken(&records, Clause::HarvestEverything, Event::HandOver);
    }
}

#[test]
fn a_destination_does_not_discard_in_lent_memory_before_it_has_the_guest() {
    let discard = Event::Discarding(pages(1, 1));
    let mut records = lent(SOURCE, DESTINATION);
    records.extend(discards(DESTINATION));
    assert_broken(&records, CLAUSE, discard);
}

#[test]
fn a_source_does_not_discard_in_memory_that_it_gave_away() {
    let discard = Event::Discarding(pages(1, 1));
    let mut records = lent(SOURCE, DESTINATION);
    records.extend(discards(SOURCE));
    assert_broken(&records, CLAUSE, discard);
    let mut records = arrived(SOURCE, DESTINATION);
    records.extend(arrived(DESTINATION, THIRD));
    records.extend(discards(SOURCE));
    assert_broken(&records, CLAUSE, discard);
}

#[test]
fn a_source_that_keeps_its_guest_may_discard_again() {
    let mut records = lent(SOURCE, DESTINATION);
    let ended = [
        Event::HandOverVoid,
        Event::Resuming,
        Event::Run,
        Event::End(Outcome::Failed),
    ];
    records.extend(on(SOURCE, ended));
    records.extend(discards(SOURCE));
    assert!(matches!(verdict(&records), Verdict::Holds(_)));
    let mut records = lent(SOURCE, DESTINATION);
    let decided = [Event::End(Outcome::Unconfirmed), Event::Decided, Event::Run];
    records.extend(on(SOURCE, decided));
    records.extend(discards(SOURCE));
    assert!(matches!(verdict(&records), Verdict::Holds(_)));
}
