// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Small traces by hand: a good one, and for each clause the one change that breaks it.

use std::vec::Vec;

use super::{Clause, Verdict, check_records};
use crate::PageRange;
use crate::trace::event::{Brought, Hinted, Log, Outcome, Writer};
use crate::trace::{Actor, Event, PageBits, Record, Role};

const SOURCE: u16 = 1;
const DESTINATION: u16 = 2;
const VCPUS: Log = Log {
    index: 0,
    writer: Writer::Vcpus,
};
const BACK_END: Log = Log {
    index: 1,
    writer: Writer::BackEnd,
};

fn pages(first: u64, count: u64) -> PageRange {
    PageRange::new(first, count).unwrap()
}

fn bits(mask: u64) -> PageBits {
    PageBits { word: 0, mask }
}

fn hint(epoch: u64, first: u64) -> Event {
    Event::Hint(Hinted {
        epoch,
        pages: pages(first, 1),
    })
}

fn brought(log: Log, mask: u64) -> Event {
    Event::Brought(Brought {
        log,
        pages: bits(mask),
    })
}

fn on(host: u16, events: impl IntoIterator<Item = Event>) -> impl Iterator<Item = Record> {
    events.into_iter().map(move |event| {
        let role = match event {
            Event::Published(_)
            | Event::Hint(_)
            | Event::DeviceClosed(_)
            | Event::GivenUp(_)
            | Event::TakenBack(_)
            | Event::Discarding(_)
            | Event::NotDiscarded(_) => Role::Device,
            Event::Armed(_) | Event::Run | Event::Stopped | Event::Loaded | Event::TakenOver => {
                Role::Machine
            }
            _ => Role::Migrator,
        };
        Record {
            actor: Actor { role, host },
            event,
        }
    })
}

/// A guest of four pages. Page 0 is sent, page 1 hinted and skipped, page 2 a hole, page 3 zero; then page 0
/// is hinted, having been sent, and page 1 is written by the back end.
fn migration() -> Vec<Record> {
    let first_round = [
        Event::Run,
        Event::Begin(2),
        Event::Memory(pages(0, 4)),
        Event::Armed(pages(0, 4)),
        Event::LogStarted(VCPUS),
        Event::LogStarted(BACK_END),
        Event::HolesAsked,
        Event::Hole(pages(2, 1)),
        Event::Open(1),
        Event::Published(1),
        hint(1, 1),
        Event::Claim(bits(0b1011)),
        Event::Skip(bits(0b0010)),
        Event::Copy(bits(0b1001)),
        Event::Zero(bits(0b1000)),
        Event::PagesSent(1),
        Event::RoundSent(1),
        Event::DeviceClosed(1),
        Event::Closed(1),
        Event::Forgotten,
        Event::HarvestBegin(false),
        brought(VCPUS, 0b0001),
        Event::LogHarvested(VCPUS),
        Event::LogHarvested(BACK_END),
        Event::HarvestEnd,
    ];
    let second_round = [
        Event::Open(2),
        Event::Published(2),
        hint(2, 0),
        Event::Claim(bits(0b0001)),
        Event::Skip(bits(0b0001)),
        Event::DiscardSent(pages(0, 1)),
        Event::RoundSent(2),
        Event::GivenUp(pages(1, 1)),
        Event::Discarding(pages(1, 1)),
        Event::DeviceClosed(2),
        Event::Closed(2),
        Event::Forgotten,
        Event::HarvestBegin(false),
        Event::LogHarvested(VCPUS),
        Event::LogHarvested(BACK_END),
        Event::HarvestEnd,
    ];
    let switchover = [
        Event::Stopped,
        Event::Paused,
        Event::DevicesStopped,
        Event::HarvestBegin(true),
        Event::LogHarvested(VCPUS),
        brought(BACK_END, 0b0010),
        Event::LogHarvested(BACK_END),
        Event::HarvestEnd,
        Event::Claim(bits(0b0010)),
        Event::Copy(bits(0b0010)),
        Event::PagesSent(1),
        Event::RoundSent(3),
    ];
    let ended = [
        Event::LogStopped(VCPUS),
        Event::LogStopped(BACK_END),
        Event::Done,
        Event::End(Outcome::Completed),
    ];
    on(SOURCE, first_round)
        .chain(on(SOURCE, second_round))
        .chain(on(SOURCE, switchover))
        .chain(on(DESTINATION, [Event::Loaded]))
        .chain(on(SOURCE, [Event::HandOver]))
        .chain(on(DESTINATION, [Event::TakenOver, Event::Run]))
        .chain(on(SOURCE, ended))
        .collect()
}

fn verdict(records: &[Record]) -> Verdict {
    check_records(records.iter().copied().map(Some), 0)
}

fn place(records: &[Record], event: Event) -> usize {
    let found = records.iter().position(|record| record.event == event);
    found.unwrap_or_else(|| panic!("no {event}"))
}

#[track_caller]
fn assert_broken(records: &[Record], clause: Clause, by: Event) {
    match verdict(records) {
        Verdict::Broken(breach) => {
            assert_eq!(
                (breach.clause, breach.record.event),
                (clause, by),
                "{breach}"
            );
        }
        other => panic!("{other}"),
    }
}

/// The good migration with `event` left out breaks `clause` at `by`.
#[track_caller]
fn needs(event: Event, clause: Clause, by: Event) {
    let mut records = migration();
    records.remove(place(&records, event));
    assert_broken(&records, clause, by);
}

/// The good migration with `late` moved before `early` breaks `clause` at `by`.
#[track_caller]
fn needs_order(early: Event, late: Event, clause: Clause, by: Event) {
    let mut records = migration();
    let moved = records.remove(place(&records, late));
    let before = place(&records, early);
    records.insert(before, moved);
    assert_broken(&records, clause, by);
}

/// The good migration with `event` put in before `next` breaks `clause` at it.
#[track_caller]
fn forbids(event: Event, next: Event, clause: Clause) {
    let mut records = migration();
    let before = place(&records, next);
    let host = records[before].actor.host;
    records.splice(before..before, on(host, [event]));
    assert_broken(&records, clause, event);
}

#[test]
fn a_migration_as_the_rule_wants_it_holds() {
    let Verdict::Holds(summary) = verdict(&migration()) else {
        panic!("{}", verdict(&migration()));
    };
    assert_eq!((summary.migrations, summary.completed), (1, 1));
    assert_eq!((summary.epochs, summary.harvests), (2, 3));
    assert_eq!((summary.hinted, summary.skipped, summary.copied), (2, 2, 3));
}

#[test]
fn records_that_are_missing_show_nothing_and_hide_no_breach() {
    let good = migration();
    let records = good.iter().copied().map(Some);
    assert_eq!(
        check_records(records.clone(), 7),
        Verdict::Incomplete { missing: 7 }
    );
    let torn = records.chain([None]);
    assert_eq!(check_records(torn, 0), Verdict::Incomplete { missing: 1 });
    let late = on(SOURCE, [Event::Run]).map(Some);
    let broken = check_records(good.into_iter().map(Some).chain(late), 7);
    assert!(matches!(broken, Verdict::Broken(_)));
}

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

/// A migration that fails when the guest is stopped, with `between` before its end.
fn failed(between: &[Event]) -> Vec<Record> {
    let mut records = migration();
    records.truncate(place(&records, Event::HandOver));
    let stopped = [Event::LogStopped(VCPUS), Event::LogStopped(BACK_END)];
    records.extend(on(SOURCE, between.iter().copied()));
    records.extend(on(SOURCE, stopped));
    records.extend(on(SOURCE, [Event::Done, Event::End(Outcome::Failed)]));
    records
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

#[test]
fn the_two_sides_never_both_own_the_guest() {
    let clause = Clause::OneOwner;
    needs(Event::Stopped, clause, Event::HandOver);
    needs(Event::HandOver, clause, Event::TakenOver);
    needs(Event::TakenOver, clause, Event::Run);
    forbids(Event::Run, Event::LogStopped(VCPUS), clause);
    forbids(Event::Resuming, Event::LogStopped(VCPUS), clause);
    // The word did not leave: the guest is still the source's.
    let mut records = failed(&[
        Event::HandOver,
        Event::HandOverVoid,
        Event::Resuming,
        Event::Run,
    ]);
    assert!(matches!(verdict(&records), Verdict::Holds(_)));
    records.remove(place(&records, Event::HandOverVoid));
    assert_broken(&records, clause, Event::Resuming);
}

/// The good migration up to its hand-over; then the link dies, and the source does not know.
fn lost_hand_over() -> Vec<Record> {
    let mut records = migration();
    records.truncate(place(&records, Event::TakenOver));
    let ended = [
        Event::LogStopped(VCPUS),
        Event::LogStopped(BACK_END),
        Event::Done,
        Event::End(Outcome::Unconfirmed),
    ];
    records.extend(on(SOURCE, ended));
    records
}

#[test]
fn an_operator_may_decide_for_either_side_of_a_hand_over_that_was_lost() {
    let mut records = lost_hand_over();
    records.extend(on(SOURCE, [Event::Decided, Event::Run]));
    assert!(matches!(verdict(&records), Verdict::Holds(_)));
    // The word that was believed lost arrives nevertheless.
    records.extend(on(DESTINATION, [Event::TakenOver]));
    assert_broken(&records, Clause::OneOwner, Event::TakenOver);

    let mut records = lost_hand_over();
    let decided = [Event::Decided, Event::TakenOver, Event::Run];
    records.extend(on(DESTINATION, decided));
    assert!(matches!(verdict(&records), Verdict::Holds(_)));
    records.extend(on(SOURCE, [Event::Run]));
    assert_broken(&records, Clause::OneOwner, Event::Run);
}

#[test]
fn an_operator_who_decides_against_a_guest_that_runs_is_found() {
    let mut records = migration();
    records.extend(on(SOURCE, [Event::Decided]));
    assert_broken(&records, Clause::OneOwner, Event::Decided);
}

#[test]
fn a_host_against_which_an_operator_decided_does_not_run_the_guest() {
    let mut records = lost_hand_over();
    records.extend(on(SOURCE, [Event::Decided]));
    records.extend(on(DESTINATION, [Event::Run]));
    assert_broken(&records, Clause::OneOwner, Event::Run);
}
