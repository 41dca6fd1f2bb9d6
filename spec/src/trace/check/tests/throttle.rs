// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is throttled for a while.

use super::*;

/// The good migration with the guest throttled in its second round, and `between` before its end.
fn throttled(between: &[Event]) -> Vec<Record> {
    let mut records = migration();
    let end = place(&records, Event::LogStopped(VCPUS));
    records.splice(end..end, on(SOURCE, between.iter().copied()));
    let second_round = place(&records, Event::Open(2));
    let rises = [Event::Throttles(20), Event::Throttles(99)];
    records.splice(second_round..second_round, on(SOURCE, rises));
    records
}

#[test]
fn a_guest_at_full_speed_after_its_migration_was_throttled_as_it_may() {
    let verdict = verdict(&throttled(&[Event::Throttles(0)]));
    assert!(matches!(verdict, Verdict::Holds(_)), "{verdict}");
}

#[test]
fn no_migration_ends_with_a_throttled_guest() {
    let end = Event::End(Outcome::Completed);
    assert_broken(&throttled(&[]), Clause::PutBack, end);
    assert_broken(
        &throttled(&[Event::Throttles(1)]),
        Clause::NoHintAfterPause,
        Event::Throttles(1),
    );
}

#[test]
fn a_guest_is_at_full_speed_before_it_runs_on() {
    let mut records = failed(&[Event::Resuming, Event::Throttles(0)]);
    let second_round = place(&records, Event::Open(2));
    records.splice(
        second_round..second_round,
        on(SOURCE, [Event::Throttles(50)]),
    );
    assert_broken(&records, Clause::PutBack, Event::Resuming);
}

#[test]
fn no_guest_is_throttled_to_a_standstill() {
    forbids(Event::Throttles(100), Event::Open(2), Clause::Order);
}
