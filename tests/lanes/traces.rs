// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the checker: if two events of a real migration's trace are swapped, the check fails at the first of them.

use spec::trace::check::{Clause, Verdict, check_records};
use spec::trace::{Event, Reader, Record};

use crate::lab::{BareGuest, Lab, Migration, skipped_without_kvm};

/// A kind of events.
type Kind = fn(&Event) -> bool;

/// Pairs of events whose order the rule requires, and the clause that requires it.
const ORDERS: [(&str, Kind, Kind, Clause); 10] = [
    (
        "a log starts, an epoch opens",
        |e| matches!(e, Event::LogStarted(_)),
        |e| matches!(e, Event::Open(_)),
        Clause::ArmFirst,
    ),
    (
        "an epoch opens, its id is published",
        |e| matches!(e, Event::Open(_)),
        |e| matches!(e, Event::Published(_)),
        Clause::CloseBeforeHarvest,
    ),
    (
        "an epoch is closed, a harvest begins",
        |e| matches!(e, Event::Closed(_)),
        |e| matches!(e, Event::HarvestBegin(false)),
        Clause::CloseBeforeHarvest,
    ),
    (
        "hints are forgotten, a harvest begins",
        |e| matches!(e, Event::Forgotten),
        |e| matches!(e, Event::HarvestBegin(false)),
        Clause::CloseBeforeHarvest,
    ),
    (
        "a log is harvested, the harvest ends",
        |e| matches!(e, Event::LogHarvested(_)),
        |e| matches!(e, Event::HarvestEnd),
        Clause::HarvestEverything,
    ),
    (
        "pages are claimed, pages are copied",
        |e| matches!(e, Event::Claim(_)),
        |e| matches!(e, Event::Copy(_)),
        Clause::ClaimBeforeCopy,
    ),
    (
        "devices stop, the last harvest begins",
        |e| matches!(e, Event::DevicesStopped),
        |e| matches!(e, Event::HarvestBegin(true)),
        Clause::HarvestEverything,
    ),
    (
        "the source stops, it hands over",
        |e| matches!(e, Event::Stopped),
        |e| matches!(e, Event::HandOver),
        Clause::OneOwner,
    ),
    (
        "the source hands over, the destination takes over",
        |e| matches!(e, Event::HandOver),
        |e| matches!(e, Event::TakenOver),
        Clause::OneOwner,
    ),
    (
        "the device is told, the migration ends",
        |e| matches!(e, Event::Done),
        |e| matches!(e, Event::End(_)),
        Clause::NoHintAfterPause,
    ),
];

/// The records of a migration that the rule allows.
fn recorded() -> Vec<Record> {
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", true);
    let migration = Migration::default();
    let (_, verdict) = migration
        .complete(&mut source, &mut destination, &uri)
        .expect("the migration completes");
    assert_eq!(verdict.pages_wrong, 0);
    let bytes = std::fs::read(lab.trace()).expect("a trace");
    let reader = Reader::open(&bytes).expect("a trace");
    reader
        .records()
        .map(|record| record.expect("no writer died"))
        .collect()
}

#[test]
fn a_real_trace_with_two_events_swapped_breaks_at_the_first_of_them() {
    if skipped_without_kvm("swapped events") {
        return;
    }
    let records = recorded();
    for (what, early, late, clause) in ORDERS {
        // The last early event before the first late event.
        let second = records.iter().position(|record| late(&record.event));
        let second = second.unwrap_or_else(|| panic!("{what}: the second is missing"));
        let first = records[..second]
            .iter()
            .rposition(|record| early(&record.event));
        let first = first.unwrap_or_else(|| panic!("{what}: the first is missing"));
        let mut swapped = records.clone();
        swapped.swap(first, second);
        match check_records(swapped.into_iter().map(Some), 0) {
            Verdict::Broken(breach) => {
                assert_eq!(
                    (breach.clause, breach.index),
                    (clause, first),
                    "{what}: {breach}"
                );
            }
            other => panic!("{what}: {other}"),
        }
    }
}
