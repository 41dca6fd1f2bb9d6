// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Small traces by hand: a good one, and for each clause the one change that breaks it.

mod channels;
mod clauses;
mod late;
mod lent;
mod mid_round;
mod owner;
mod postcopy;
mod rings;
mod throttle;

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
            Event::Armed(_)
            | Event::RingTaken(_)
            | Event::Run
            | Event::Stopped
            | Event::Restoring
            | Event::Loaded
            | Event::TakenOver => Role::Machine,
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
