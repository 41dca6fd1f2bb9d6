// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! For each clause of the rule, the changes of a good migration that break it.

use std::vec::Vec;

use super::*;

#[test]
fn clause_1_no_epoch_opens_before_every_log_has_armed_every_page() {
    let open = Event::Open(1);
    needs_order(Event::LogStarted(BACK_END), open, Clause::ArmFirst, open);
    let asked = Event::HolesAsked;
    needs_order(Event::LogStarted(VCPUS), asked, Clause::ArmFirst, asked);
    needs(asked, Clause::ArmFirst, Event::Hole(pages(2, 1)));
    let mut records = migration();
    let armed = place(&records, Event::Armed(pages(0, 4)));
    records.splice(armed..=armed, on(SOURCE, [Event::Armed(pages(0, 3))]));
    assert_broken(&records, Clause::ArmFirst, Event::LogStarted(VCPUS));
}

#[test]
fn clause_2_memory_is_discarded_only_where_the_guest_gave_it_up() {
    let discarding = Event::Discarding(pages(1, 1));
    let clause = Clause::HintDiscardsNothing;
    needs(Event::GivenUp(pages(1, 1)), clause, discarding);
    // What was hinted was not given up.
    forbids(
        Event::Discarding(pages(0, 1)),
        Event::DeviceClosed(2),
        clause,
    );
    forbids(discarding, Event::GivenUp(pages(1, 1)), clause);
    let mut records = migration();
    let at = place(&records, discarding);
    records.splice(at..at, on(SOURCE, [Event::TakenBack(pages(1, 1))]));
    assert_broken(&records, clause, discarding);
}

#[test]
fn clause_3_an_epoch_is_closed_and_forgotten_before_a_harvest() {
    let clause = Clause::CloseBeforeHarvest;
    let harvest = Event::HarvestBegin(false);
    needs_order(Event::Closed(1), harvest, clause, harvest);
    needs_order(Event::Forgotten, harvest, clause, harvest);
    needs(Event::Forgotten, clause, harvest);
    // A harvest is complete before the next epoch opens.
    needs_order(Event::HarvestEnd, Event::Open(2), clause, Event::Open(2));
}

#[test]
fn clause_3_a_hint_counts_in_its_own_epoch_only() {
    let clause = Clause::CloseBeforeHarvest;
    forbids(hint(1, 3), Event::Closed(1), clause);
    forbids(hint(1, 3), Event::Forgotten, clause);
    forbids(hint(1, 3), Event::RoundSent(2), clause);
    forbids(Event::Published(1), Event::Open(2), clause);
    needs(hint(1, 1), clause, Event::Skip(bits(0b0010)));
    needs_order(
        hint(2, 0),
        Event::Skip(bits(0b0001)),
        Clause::ClaimBeforeCopy,
        Event::Skip(bits(0b0001)),
    );
    // The page was hinted in epoch 1 and written since: in epoch 2 that says nothing.
    let mut records = migration();
    let at = place(&records, hint(2, 0));
    records.splice(at..=at, on(SOURCE, [hint(2, 1)]));
    assert_broken(&records, clause, Event::Skip(bits(0b0001)));
}

#[test]
fn clause_4_a_harvest_leaves_no_log_out_and_what_it_brings_is_sent() {
    let clause = Clause::HarvestEverything;
    needs(Event::LogHarvested(BACK_END), clause, Event::HarvestEnd);
    let last = Event::HarvestBegin(true);
    needs_order(Event::DevicesStopped, last, clause, last);
    // Page 2 is dirty after all, and nobody sends it.
    let mut records = migration();
    let at = place(&records, Event::LogHarvested(BACK_END));
    records.splice(at..at, on(SOURCE, [brought(BACK_END, 0b0100)]));
    assert_broken(&records, clause, Event::HandOver);
    needs(
        Event::Claim(bits(0b0001)),
        Clause::ClaimBeforeCopy,
        Event::Skip(bits(0b0001)),
    );
    // What a log has read and not cleared yet could be sent, and written once more before it is cleared.
    forbids(
        Event::Claim(bits(0b0001)),
        Event::LogHarvested(BACK_END),
        clause,
    );
    forbids(Event::HolesAsked, Event::LogHarvested(BACK_END), clause);
    // The balloon changed page 1, and its log must say so.
    let mut records = migration();
    records.remove(place(&records, brought(BACK_END, 0b0010)));
    let at = place(&records, Event::HarvestBegin(true));
    let end = records[at..]
        .iter()
        .position(|r| r.event == Event::HarvestEnd);
    match verdict(&records) {
        Verdict::Broken(breach) => assert_eq!(
            (breach.clause, Some(breach.index - at)),
            (clause, end),
            "{breach}"
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn clause_5_no_hint_is_used_once_the_guest_is_stopped() {
    let clause = Clause::NoHintAfterPause;
    needs_order(Event::Closed(2), Event::Paused, clause, Event::Paused);
    forbids(Event::Open(3), Event::DevicesStopped, clause);
    forbids(hint(2, 3), Event::DevicesStopped, clause);
    let mut records = migration();
    let at = place(&records, Event::Copy(bits(0b0010)));
    let skip = Event::Skip(bits(0b0010));
    records.splice(at..=at, on(SOURCE, [skip]));
    assert_broken(&records, clause, skip);
}

#[test]
fn clause_5_in_the_end_logs_stop_and_the_guest_is_told() {
    let (clause, end) = (Clause::NoHintAfterPause, Event::End(Outcome::Completed));
    needs(Event::LogStopped(BACK_END), clause, end);
    needs(Event::Done, clause, end);
}

#[test]
fn clause_6_a_migration_that_fails_leaves_a_guest_that_runs() {
    let mut resumed = failed(&[Event::Resuming, Event::Run]);
    assert!(matches!(verdict(&resumed), Verdict::Holds(_)));
    let end = Event::End(Outcome::Failed);
    assert_broken(&failed(&[]), Clause::PutBack, end);
    // The next migration starts from all dirty: what the first has sent does not count.
    let again: Vec<_> = migration().into_iter().skip(1).collect();
    let whole: Vec<_> = resumed.iter().chain(&again).copied().collect();
    assert!(matches!(verdict(&whole), Verdict::Holds(_)));
    let less = [
        Event::Begin(1),
        Event::Memory(pages(0, 1)),
        Event::LogStarted(VCPUS),
        Event::Stopped,
        Event::Paused,
        Event::DevicesStopped,
        Event::HarvestBegin(true),
        Event::LogHarvested(VCPUS),
        Event::HarvestEnd,
        Event::HandOver,
    ];
    resumed.extend(on(SOURCE, less));
    assert_broken(&resumed, Clause::HarvestEverything, Event::HandOver);
}

#[test]
fn clause_7_old_content_of_a_hinted_page_is_discarded() {
    let discard = Event::DiscardSent(pages(0, 1));
    needs(discard, Clause::ReadsAsZero, Event::RoundSent(2));
    // In round 1 the destination needs what it has of the page.
    forbids(discard, Event::RoundSent(1), Clause::ReadsAsZero);
}

#[test]
fn pages_are_claimed_before_they_are_copied_and_what_is_claimed_is_sent() {
    let clause = Clause::ClaimBeforeCopy;
    let copy = Event::Copy(bits(0b0010));
    needs(Event::Claim(bits(0b0010)), clause, copy);
    needs_order(Event::Claim(bits(0b0010)), copy, clause, copy);
    needs(copy, clause, Event::PagesSent(1));
    needs(Event::PagesSent(1), clause, Event::RoundSent(1));
}
