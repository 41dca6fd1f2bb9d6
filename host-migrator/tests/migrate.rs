// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole migrations of a guest made of threads.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host_migrator::report::round_map::Fates;
use host_migrator::{MigrationParams, MigrationReport, PageSource, PageSources};
use software_guest::memory::{Memory, one};
use software_guest::workload::{Behaviour, Workload};
use software_guest::{Guest, Outcome, migrate, rounds};

/// A guest with two regions. Every third page is in use; every fourth of the others has been freed with its content.
fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(1500, 700));
    let pages: Vec<u64> = guest.memory.pages().collect();
    for pfn in &pages {
        if pfn % 3 == 0 || pfn % 4 == 0 {
            guest.write(*pfn);
        }
        if pfn % 3 != 0 {
            guest.memory.free(*pfn);
        }
    }
    Arc::new(guest)
}

/// Hints all pages that a guest of [`guest`] has freed.
fn hint_all_free(guest: &Arc<Guest>) {
    let theirs = Arc::clone(guest);
    guest.hints.on_open(move |_| {
        for pfn in theirs.memory.pages() {
            if !theirs.memory.in_use(pfn) {
                theirs.hints.hint(one(pfn));
            }
        }
        theirs.hints.finish();
    });
}

fn without_hints() -> MigrationParams {
    MigrationParams::default().with_sources(PageSources::ALL.without_hints())
}

fn assert_exact(guest: &Guest, outcome: &Outcome) {
    outcome.assert_exact(guest);
    assert!(guest.machine.is_handed_over());
    assert!(!guest.vcpu_log.is_running() && !guest.own_log.is_running());
}

/// Checks that the rounds' maps agree with their statistics.
fn assert_maps_agree(report: &MigrationReport) {
    let maps = report.maps.as_ref().unwrap();
    assert_eq!(maps.memory.iter().sum::<u64>(), report.pages_total);
    assert_eq!(maps.rows.len(), report.rounds.len());
    for (row, round) in maps.rows.iter().zip(&report.rounds) {
        let sum = row.sum();
        let mut expected = Fates::default();
        expected.sent = round.pages_sent;
        expected.zero = round.pages_zero;
        expected.skipped = round.pages_hinted;
        if round.round == 1 {
            expected.holes = report.pages_holes;
        }
        expected.resent = round.pages_resent;
        expected.late = round.pages_hinted_too_late;
        expected.in_vain = sum.in_vain;
        assert_eq!((row.first_round, sum), (round.round, expected));
        for (cell, memory) in row.cells.iter().zip(&maps.memory) {
            assert!(cell.sent + cell.zero + cell.skipped + cell.holes <= *memory);
            assert!(cell.in_vain <= cell.sent && cell.resent <= cell.sent);
        }
    }
}

#[test]
fn a_guest_that_stands_still_arrives_whole() {
    for skip_holes in [false, true] {
        let guest = guest();
        let params = without_hints().with_sources(if skip_holes {
            PageSources::ALL.without_hints()
        } else {
            [PageSource::Zero].into_iter().collect()
        });
        let outcome = migrate(guest.source(), params);
        assert_exact(&guest, &outcome);
        let report = outcome.report();
        let written = guest
            .memory
            .pages()
            .filter(|p| p % 3 == 0 || p % 4 == 0)
            .count() as u64;
        assert_eq!(report.totals.pages_sent, written);
        assert_eq!(
            report.pages_holes + report.totals.pages_zero,
            report.pages_total - written
        );
        assert_eq!(report.pages_holes > 0, skip_holes);
        assert_eq!(report.totals.pages_hinted, 0);
    }
}

#[test]
fn hinted_pages_are_not_sent_and_read_as_zero() {
    let guest = guest();
    hint_all_free(&guest);
    let outcome = migrate(guest.source(), MigrationParams::default());
    assert_exact(&guest, &outcome);
    let report = outcome.report();
    let in_use = guest.memory.pages().filter(|p| p % 3 == 0).count() as u64;
    assert_eq!(report.totals.pages_sent, in_use);
    assert!(report.totals.pages_hinted > 0);
    let overhead = report.wire_bytes as f64 / (in_use * 4096) as f64;
    assert!(overhead < 1.15, "{overhead}");
}

#[test]
fn a_guest_that_writes_frees_hints_and_reuses_while_it_is_migrated_loses_nothing() {
    for seed in 0..20 {
        let guest = guest();
        let behaviour = Behaviour {
            seed,
            hints: seed % 4 != 0,
            pause: seed % 3 * 20,
            first_page: 0,
        };
        let workload = Workload::start(&guest, behaviour);
        let params = MigrationParams::default()
            .with_downtime_limit(Duration::from_micros(200))
            .with_max_rounds(6)
            .with_map_rounds(true);
        let outcome = migrate(guest.source(), params);
        workload.stop();
        assert_exact(&guest, &outcome);
        assert_maps_agree(outcome.report());
        assert_eq!(guest.hints.done.load(Ordering::Acquire), 1);
    }
}

#[test]
fn pages_hinted_after_they_were_sent_are_made_zero_again() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        // Round 1 sends page 3. Then the guest writes, frees and hints it.
        match epoch {
            1 => {}
            2 => {
                theirs.memory.free(3);
                theirs.hints.hint(one(3));
            }
            _ => {}
        }
        theirs.hints.finish();
        if epoch == 1 {
            theirs.write(3);
        }
    });
    let params = rounds(2);
    let outcome = migrate(guest.source(), params);
    assert_exact(&guest, &outcome);
    let report = outcome.report();
    assert_eq!(report.rounds[1].pages_hinted, 1);
    assert_eq!(report.rounds[1].pages_discarded, 1);
    assert!(report.skipped.as_ref().unwrap().contains(3));
}

#[test]
fn hints_that_come_too_late_are_counted_and_harmless() {
    let guest = guest();
    let theirs = Arc::clone(&guest);
    guest.hints.on_open(move |epoch| {
        if epoch == 2 {
            theirs.memory.free(6);
            theirs.hints.hint(one(6));
        } else {
            theirs.write(3);
        }
        theirs.hints.finish();
    });
    let params = rounds(2).with_map_rounds(true);
    let outcome = migrate(guest.source(), params);
    assert_exact(&guest, &outcome);
    let report = outcome.report();
    assert_eq!(report.rounds[1].pages_hinted_too_late, 1);
    assert_eq!(report.totals.pages_hinted, 0);
    assert_maps_agree(report);
    let first = &report.maps.as_ref().unwrap().rows[0];
    assert_eq!((first.sum().in_vain, first.cells[0].in_vain), (1, 1));
}

#[test]
fn a_silent_guest_costs_the_same_bytes_as_no_hints() {
    let bytes = |params| {
        let guest = guest();
        let outcome = migrate(guest.source(), params);
        assert_exact(&guest, &outcome);
        outcome.report().wire_bytes
    };
    assert_eq!(bytes(MigrationParams::default()), bytes(without_hints()));
}

#[test]
fn hints_of_a_device_that_fails_to_close_are_not_used_again() {
    let guest = guest();
    hint_all_free(&guest);
    guest.hints.fail_to_close.store(true, Ordering::Release);
    let theirs = Arc::clone(&guest);
    // After the failed close the guest reuses a hinted page that is still in the map.
    let outcome = {
        let params = rounds(3);
        let workload = Workload::start(
            &theirs,
            Behaviour {
                seed: 5,
                hints: false,
                pause: 10,
                first_page: 0,
            },
        );
        let outcome = migrate(guest.source(), params);
        workload.stop();
        outcome
    };
    assert_exact(&guest, &outcome);
    let report: &MigrationReport = outcome.report();
    assert!(report.rounds[0].pages_hinted > 0);
    assert!(
        report.rounds[1..]
            .iter()
            .all(|round| round.pages_hinted == 0)
    );
    assert!(report.hints.lost.is_some());
}

#[test]
fn a_guest_can_move_on_from_its_destination() {
    let first = guest();
    hint_all_free(&first);
    let outcome = migrate(first.source(), MigrationParams::default());
    assert_exact(&first, &outcome);
    let second = Arc::new(Guest::new(first.memory.moved_to(Arc::clone(&outcome.ram))));
    hint_all_free(&second);
    let workload = Workload::start(
        &second,
        Behaviour {
            seed: 77,
            hints: true,
            pause: 5,
            first_page: 0,
        },
    );
    let params = rounds(4);
    let outcome = migrate(second.source(), params);
    workload.stop();
    assert_exact(&second, &outcome);
    assert!(outcome.report().totals.pages_hinted > 0);
}

#[test]
fn memory_that_held_another_guest_shows_nothing_of_it() {
    let guest = guest();
    hint_all_free(&guest);
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let used = Memory::of(Arc::new(software_guest::memory::like(&guest.memory.ram)));
    used.pages().for_each(|pfn| used.write(pfn));
    let outcome = software_guest::migrate_over(
        guest.source(),
        MigrationParams::default(),
        here,
        there,
        Arc::clone(&used.ram),
    );
    assert_exact(&guest, &outcome);
}
