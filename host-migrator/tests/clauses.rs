// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the tests: without any one clause of the rule, a write is lost and the oracle finds it. With all clauses,
//! the same guest loses nothing.
#![cfg(clause_switches)]
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use host_migrator::{Clause, GuestRam, Source};
use software_guest::balloon::Balloon;
use software_guest::copy::copy;
use software_guest::memory::{Memory, WrongPage, like, one};
use software_guest::proxy::watched;
use software_guest::{Guest, migrate, migrate_on, rounds};
use spec::stream::{PagesPrefix, RUN_BYTES, SectionKind, runs};
use spec::trace::check::{self, Verdict};
use spec::{PAGE_SIZE, PageRange};

/// The two ends of a connection.
type UnixStreams = (UnixStream, UnixStream);

/// Enough pages for an early harvest before the last ones are sent.
const PAGES: u64 = 2048;
/// The page that the hostile guests free, hint and reuse.
const VICTIM: u64 = PAGES - 70;
/// A harvest in the middle of each round, after most of its pages. Epochs 1 and 2 are in the first round; epoch 3
/// begins the second.
const SYNC_PAGES: u64 = 1500;
/// A page that the second round sends before that harvest.
const EARLY_VICTIM: u64 = 5;

/// A guest whose pages all have content, except the victim, which it has freed.
fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(PAGES, 0));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    guest.memory.free(VICTIM);
    Arc::new(guest)
}

/// Migrates in two rounds and the last. Returns which pages are wrong at the destination, and which clause
/// the trace shows to be broken.
fn wrong_pages(
    guest: &Guest,
    source: Source<'static>,
    switched_off: Option<Clause>,
    sync_pages: Option<u64>,
) -> (Vec<WrongPage>, Option<check::Clause>) {
    let params = rounds(2)
        .with_switched_off(switched_off.into_iter().collect())
        .with_sync_pages(sync_pages);
    let outcome = migrate(source, params);
    outcome.report();
    assert!(outcome.destination.runs);
    let broken = match &outcome.verdict {
        Verdict::Broken(breach) => Some(breach.clause),
        _ => None,
    };
    (outcome.wrong_pages(&guest.memory), broken)
}

/// Runs one new `guest` with the whole rule, and another without `clause`.
fn assert_needed(clause: Clause, guest: impl Fn() -> Arc<Guest>) {
    let try_with = |switched_off| {
        let guest = guest();
        wrong_pages(&guest, guest.source(), switched_off, None)
    };
    assert_lost_without(clause, VICTIM, try_with);
}

/// As [`assert_needed`], for a clause about harvests in the middle of a round.
fn assert_needed_in_mid_round(clause: Clause, guest: impl Fn() -> (Arc<Guest>, Source<'static>)) {
    let try_with = |switched_off| {
        let (guest, source) = guest();
        wrong_pages(&guest, source, switched_off, Some(SYNC_PAGES))
    };
    assert_lost_without(clause, EARLY_VICTIM, try_with);
}

/// Checks that `try_with` loses nothing with the whole rule, and the page `victim` without `clause`.
fn assert_lost_without(
    clause: Clause,
    victim: u64,
    try_with: impl Fn(Option<Clause>) -> (Vec<WrongPage>, Option<check::Clause>),
) {
    assert_eq!(try_with(None), (vec![], None));
    let lost = WrongPage {
        pfn: victim,
        in_use: true,
    };
    let broken = match clause {
        Clause::ArmFirst => check::Clause::ArmFirst,
        Clause::ForgetOldHints | Clause::CloseBeforeHarvest | Clause::ForgetHoles => {
            check::Clause::CloseBeforeHarvest
        }
        Clause::NoHintAfterPause => check::Clause::NoHintAfterPause,
        Clause::KeepEarly | Clause::SpareEarlyCopies | Clause::MergeOwnWrites => {
            check::Clause::HarvestEverything
        }
        Clause::FlushTables => check::Clause::ClaimBeforeCopy,
        other => unreachable!("{other} has no switch"),
    };
    assert_eq!(
        try_with(Some(clause)),
        (vec![lost], Some(broken)),
        "without {clause}"
    );
}

/// The guest hints the victim in the first epoch and reuses it at once.
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
fn a_late_hint_that_discards_what_was_found_early_loses_a_write() {
    let try_with = |switched_off: Option<Clause>| {
        let guest = guest();
        guest.write(VICTIM);
        let theirs = Arc::clone(&guest);
        guest.hints.on_open(move |epoch| {
            if epoch == 1 {
                theirs.memory.free(VICTIM);
                theirs.write(VICTIM);
            }
        });
        let theirs = Arc::clone(&guest);
        // The device takes the hint from the queue only now. The guest has made it before it wrote.
        guest.hints.on_close(move |epoch| {
            if epoch == 1 {
                theirs.hints.hint(one(VICTIM));
            }
        });
        let params = rounds(2).with_switched_off(switched_off.into_iter().collect());
        let mut source = guest.source();
        let copied = copy(&mut source, &guest.machine, &params).unwrap();
        let (records, dropped) = source.trace.records();
        let broken = match check::check_records(records, dropped) {
            Verdict::Broken(breach) => Some(breach.clause),
            _ => None,
        };
        (copied.wrong_pages(&guest.memory), broken)
    };
    assert_lost_without(Clause::SpareEarlyCopies, VICTIM, try_with);
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

/// A guest whose pages are all pending in the second round, and what happens to the early victim when that round
/// begins.
fn writes_all_in_the_first_round(
    guest: &Arc<Guest>,
    but: std::ops::Range<u64>,
    then: impl Fn(&Guest) + Send + 'static,
) {
    let theirs = Arc::clone(guest);
    guest.hints.on_open(move |epoch| {
        match epoch {
            2 => (0..PAGES)
                .filter(|pfn| !but.contains(pfn))
                .for_each(|pfn| theirs.write(pfn)),
            3 => then(&theirs),
            _ => {}
        }
        theirs.hints.finish();
    });
}

#[test]
fn a_discard_that_waits_in_its_table_during_a_harvest_loses_a_write() {
    assert_needed_in_mid_round(Clause::FlushTables, || {
        let guest = guest();
        writes_all_in_the_first_round(&guest, 0..0, |guest| {
            guest.hints.hint(one(EARLY_VICTIM));
            guest.write(EARLY_VICTIM);
        });
        let source = guest.source();
        (guest, source)
    });
}

#[test]
fn a_hole_that_outlives_a_harvest_loses_a_write() {
    assert_needed_in_mid_round(Clause::ForgetHoles, || {
        let guest = guest();
        let taken = PageRange::new(0, 128).unwrap();
        writes_all_in_the_first_round(&guest, taken.first()..taken.end(), |guest| {
            guest.write(EARLY_VICTIM);
        });
        let mut source = guest.source();
        source.logs.push(Box::new(Balloon::new(&guest, taken)));
        (guest, source)
    });
}

/// The pages of a `Pages` section.
fn pages_of(payload: &[u8]) -> Vec<u64> {
    let (prefix, rest) = payload.split_first_chunk().unwrap();
    let prefix = PagesPrefix::from_bytes(prefix, payload.len() as u64).unwrap();
    runs(
        SectionKind::Pages,
        &rest[..prefix.runs as usize * RUN_BYTES],
    )
    .map(Result::unwrap)
    .flat_map(|run| run.first()..run.end())
    .collect()
}

/// Two channels. The guest writes the pages of the second round's first section on one of them when they have been copied. If
/// `held`, that section waits there until the destination has the next versions.
fn two_channels(guest: &Arc<Guest>, ram: &Arc<GuestRam>, held: bool) -> [UnixStreams; 2] {
    let is_there = Arc::<AtomicBool>::default();
    let (seen, guest, ram) = (Arc::clone(&is_there), Arc::clone(guest), Arc::clone(ram));
    let slow = watched(move |section, payload| {
        if (section.kind, section.round) != (SectionKind::Pages, 2) || seen.load(Ordering::Acquire)
        {
            return;
        }
        let pages = pages_of(payload);
        pages.iter().for_each(|pfn| guest.write(*pfn));
        seen.store(true, Ordering::Release);
        let content = |ram: &GuestRam, pfn: u64| {
            let mut page = [0; PAGE_SIZE as usize];
            ram.read(one(pfn), &mut page).unwrap();
            page
        };
        let has_next = |pfn: &u64| content(&ram, *pfn) == content(&guest.memory.ram, *pfn);
        while held && !pages.iter().all(has_next) {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let fast = watched(move |section, _| {
        while section.round == 2 && !is_there.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
    });
    [slow, fast]
}

#[test]
fn channels_that_are_not_drained_turn_two_versions_round() {
    // The first round has three epochs. In the second, pages that were free before go last, after all others.
    const SYNC_PAGES: u64 = 900;
    let try_with = |switched_off: Option<Clause>| {
        let guest = guest();
        let theirs = Arc::clone(&guest);
        guest.hints.on_open(move |epoch| {
            if epoch <= 3 {
                theirs.hints.hint(one(VICTIM));
                let others = (0..PAGES).filter(|pfn| *pfn != VICTIM);
                others.for_each(|pfn| theirs.write(pfn));
            }
            theirs.hints.finish();
        });
        let params = rounds(2)
            .with_sync_pages(SYNC_PAGES)
            .with_multifd_channels(2)
            .with_switched_off(switched_off.into_iter().collect());
        let ram = Arc::new(like(&guest.memory.ram));
        let mut streams = vec![UnixStream::pair().unwrap()];
        streams.extend(two_channels(&guest, &ram, switched_off.is_some()));
        let outcome = migrate_on(guest.source(), params, streams, ram);
        outcome.report();
        assert!(outcome.destination.runs);
        (outcome.wrong_pages(&guest.memory).len(), outcome.verdict)
    };
    let (wrong, verdict) = try_with(None);
    assert!(
        wrong == 0 && matches!(verdict, Verdict::Holds(_)),
        "{verdict}"
    );
    let (wrong, verdict) = try_with(Some(Clause::DrainChannels));
    assert!(wrong > 0, "no page was lost without the clause");
    match verdict {
        Verdict::Broken(breach) => assert_eq!(breach.clause, check::Clause::OnePageOneOrder),
        other => panic!("{other}"),
    }
}
