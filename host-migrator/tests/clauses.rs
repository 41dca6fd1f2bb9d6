// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the tests: each clause of the rule, switched off, loses a write that the oracle finds; and the
//! same guest loses nothing while the clause holds.
#![cfg(clause_switches)]
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;

use host_migrator::{Clause, MigrationParams};
use software_guest::memory::{Memory, WrongPage, one};
use software_guest::{Guest, migrate, rounds};
use spec::trace::check::{self, Verdict};

/// Enough for an early harvest before the last pages are sent.
const PAGES: u64 = 2048;
/// The page that the hostile guests free, hint and use again.
const VICTIM: u64 = PAGES - 70;

/// A guest whose pages all hold something, but for the victim, which it has freed.
fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(PAGES, 0));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    guest.memory.free(VICTIM);
    Arc::new(guest)
}

/// Migrates in two rounds and the last; says which pages are wrong at the destination, and what of the rule
/// the trace shows broken.
fn wrong_pages(
    guest: &Guest,
    switched_off: Option<Clause>,
) -> (Vec<WrongPage>, Option<check::Clause>) {
    let params = MigrationParams {
        switched_off: switched_off.into_iter().collect(),
        ..rounds(2)
    };
    let outcome = migrate(guest.source(), params);
    outcome.report();
    assert!(outcome.destination.runs);
    let broken = match &outcome.verdict {
        Verdict::Broken(breach) => Some(breach.clause),
        _ => None,
    };
    (outcome.wrong_pages(&guest.memory), broken)
}

/// Runs `guest`, made anew each time, with the rule and without `clause`.
fn assert_needed(clause: Clause, guest: impl Fn() -> Arc<Guest>) {
    assert_eq!(wrong_pages(&guest(), None), (vec![], None));
    let lost = WrongPage {
        pfn: VICTIM,
        in_use: true,
    };
    let broken = match clause {
        Clause::ArmFirst => check::Clause::ArmFirst,
        Clause::ForgetOldHints | Clause::CloseBeforeHarvest => check::Clause::CloseBeforeHarvest,
        Clause::NoHintAfterPause => check::Clause::NoHintAfterPause,
        Clause::KeepEarly | Clause::MergeOwnWrites => check::Clause::HarvestEverything,
        other => unreachable!("{other} has no switch"),
    };
    assert_eq!(
        wrong_pages(&guest(), Some(clause)),
        (vec![lost], Some(broken)),
        "without {clause}"
    );
}

/// The guest hints the victim in the first epoch, and takes it into use again at once.
fn reuses_at_once() -> Arc<Guest> {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 1 {
            theirs.hints.hint(one(VICTIM));
            theirs.write(VICTIM);
        }
        theirs.hints.finish();
    });
    guest
}

#[test]
fn arming_after_the_epoch_opened_loses_a_write() {
    assert_needed(Clause::ArmFirst, reuses_at_once);
}

#[test]
fn a_hint_that_answers_what_was_found_early_loses_a_write() {
    assert_needed(Clause::KeepEarly, reuses_at_once);
}

#[test]
fn a_stale_hint_that_is_applied_loses_a_write() {
    assert_needed(Clause::ForgetOldHints, reuses_at_once);
}

#[test]
fn a_harvest_with_the_epoch_open_loses_a_write() {
    assert_needed(Clause::CloseBeforeHarvest, reuses_at_once);
}

#[test]
fn a_hint_taken_after_the_pause_loses_a_write() {
    assert_needed(Clause::NoHintAfterPause, || {
        let guest = guest();
        let theirs = Arc::clone(&guest);
        guest.hints.on_open(move |_| {
            theirs.memory.free(VICTIM);
            theirs.hints.hint(one(VICTIM));
            theirs.write(VICTIM);
            theirs.hints.finish();
        });
        guest
    });
}

#[test]
fn own_writes_that_are_not_merged_are_lost() {
    assert_needed(Clause::MergeOwnWrites, || {
        let guest = guest();
        let theirs = Arc::clone(&guest);
        guest.hints.on_open(move |epoch| {
            if epoch == 1 {
                theirs.hints.hint(one(VICTIM));
                theirs.write_by_vmm(VICTIM);
            }
            theirs.hints.finish();
        });
        guest
    });
}
