// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who owns the guest, as the trace tells it.

use std::vec::Vec;

use super::*;

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

/// Host 3 restores the guest that host 1 has saved and that runs on there.
fn restored() -> Vec<Record> {
    let mut records: Vec<_> = on(SOURCE, [Event::Run]).collect();
    let restored = [
        Event::Restoring,
        Event::Loaded,
        Event::TakenOver,
        Event::Run,
    ];
    records.extend(on(3, restored));
    records
}

#[test]
fn a_guest_out_of_a_file_is_another_guest_and_is_handed_over_by_nobody() {
    assert!(matches!(verdict(&restored()), Verdict::Holds(_)));
    let mut records = restored();
    records.remove(place(&records, Event::Restoring));
    assert_broken(&records, Clause::OneOwner, Event::TakenOver);
    // A host that has a guest restores none.
    let mut records = restored();
    records.extend(on(3, [Event::Restoring]));
    assert_broken(&records, Clause::OneOwner, Event::Restoring);
}

#[test]
fn a_restored_guest_never_runs_twice_either() {
    let mut records = restored();
    records.extend(on(3, [Event::Stopped, Event::HandOver]));
    records.extend(on(4, [Event::Loaded, Event::TakenOver, Event::Run]));
    assert!(matches!(verdict(&records), Verdict::Holds(_)));
    records.extend(on(3, [Event::Run]));
    assert_broken(&records, Clause::OneOwner, Event::Run);
}
