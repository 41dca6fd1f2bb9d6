// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several channels: what is sent later may overtake what was sent before.

use super::*;

const CLAUSE: Clause = Clause::OnePageOneOrder;

/// The good migration on several channels: they are drained after each round.
fn on_two_channels() -> Vec<Record> {
    let mut records = migration();
    let start = place(&records, Event::HolesAsked);
    records.splice(start..start, on(SOURCE, [Event::Channels(2)]));
    for round in 1..=3 {
        let sent = place(&records, Event::RoundSent(round)) + 1;
        records.splice(sent..sent, on(SOURCE, [Event::Drained]));
    }
    records
}

fn without_drain(number: usize) -> Vec<Record> {
    let mut records = on_two_channels();
    let drains = (0..records.len()).filter(|&at| records[at].event == Event::Drained);
    let at = drains.clone().nth(number).unwrap();
    records.remove(at);
    records
}

#[test]
fn channels_that_are_drained_in_every_round_are_fine() {
    assert!(matches!(verdict(&on_two_channels()), Verdict::Holds(_)));
}

#[test]
fn a_harvest_waits_until_the_channels_are_drained() {
    assert_broken(&without_drain(0), CLAUSE, Event::HarvestBegin(false));
    // The second round sends nothing but a discard.
    assert_broken(&without_drain(1), CLAUSE, Event::HarvestBegin(false));
}

#[test]
fn the_guest_is_handed_over_when_the_channels_are_drained() {
    assert_broken(&without_drain(2), CLAUSE, Event::HandOver);
}

#[test]
fn what_is_sent_after_a_drain_needs_another() {
    let mut records = on_two_channels();
    let drained = place(&records, Event::Drained);
    let round = place(&records, Event::PagesSent(1));
    records[round..=drained].rotate_right(1);
    assert_broken(&records, CLAUSE, Event::HarvestBegin(false));
}
