// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare lane: the bare-metal guest on /dev/kvm, migrated between processes.

use std::num::NonZeroU32;

use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, end_of_migration, ends, hinted, lacuna, release_and_check,
    skipped_without_kvm, status, whole_pass,
};
use host_migrator::report::stats::{MigrationReport, MigrationState};
use lacuna::compare::Record;
use lacuna::control::{Command, HintMode};
use lacuna::machine::MachineState;

use crate::memory_files::bytes_taken;

/// One migration with everything compared. Returns the report.
fn migrate(guest: BareGuest, migration: &Migration) -> MigrationReport {
    let lab = Lab::new(guest);
    let mut source = lab.running("source");
    let moved = lab.move_whole(migration, &mut source, "destination");
    assert!(moved.pages_compared >= (256 << 20) / 4096);
    moved.report
}

/// The pages that were sent once more.
fn resent(report: &MigrationReport) -> u64 {
    report.rounds.iter().map(|round| round.pages_resent).sum()
}

/// The pages that were sent.
fn sent(report: &MigrationReport) -> u64 {
    report.rounds.iter().map(|round| round.pages_sent).sum()
}

#[test]
fn with_hints_little_more_than_the_memory_in_use_crosses_the_wire() {
    if skipped_without_kvm("bare, hints on") {
        return;
    }
    for seed in 1..=3 {
        let report = migrate(
            BareGuest {
                seed,
                ..Default::default()
            },
            // Slower than any guest hints, however busy this machine is.
            &Migration {
                max_bandwidth: Some(100 << 20),
                ..Default::default()
            },
        );
        assert!(
            hinted(&report) > (100 << 20) / 4096,
            "most of the freed memory is hinted: {report:?}"
        );
        // 32 MiB in use, the guest's image and tables, and what was written again.
        let in_use = (32 << 20) + (2 << 20) + resent(&report) * 4096;
        assert!(
            report.wire_bytes < in_use * 115 / 100,
            "{} bytes: {report:?}",
            report.wire_bytes
        );
    }
}

#[test]
fn without_hints_freed_memory_crosses_the_wire_too() {
    if skipped_without_kvm("bare, hints off") {
        return;
    }
    for hints in [HintMode::Off, HintMode::Holes] {
        let report = migrate(
            BareGuest::default(),
            &Migration {
                hints,
                ..Default::default()
            },
        );
        assert_eq!(hinted(&report), 0);
        assert!(
            report.wire_bytes > (180 << 20),
            "{hints}: {}",
            report.wire_bytes
        );
    }
}

#[test]
fn a_guest_that_uses_hinted_pages_at_once_loses_nothing() {
    if skipped_without_kvm("bare, early release") {
        return;
    }
    for seed in 10..14 {
        let guest = BareGuest {
            hold: "early",
            churn: 20_000,
            dirty_rate: "16M",
            vcpus: 2,
            seed,
            ..Default::default()
        };
        let lab = Lab::new(guest);
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving("destination", true);
        // A slow link, so that there are many rounds and many epochs.
        let migration = Migration {
            max_bandwidth: Some(100 << 20),
            downtime_limit: 50,
            ..Default::default()
        };
        let (report, verdict) = migration
            .complete(&mut source, &mut destination, &uri)
            .unwrap();
        let guest = status(&source).guest.unwrap_or_default();
        assert!(
            guest.early_releases > 0,
            "the race was not provoked: {guest:?}"
        );
        lab.assert_right(&verdict, format_args!("seed {seed}: {report:?}"));
        release_and_check(&mut destination);
    }
}

#[test]
fn a_guest_arrives_in_memory_that_was_populated_for_it() {
    if skipped_without_kvm("bare, populated") {
        return;
    }
    let guest = BareGuest {
        memory: "256M",
        ..Default::default()
    };
    let lab = Lab::new(guest);
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving_with("destination", &["--populate"]);
    let taken = bytes_taken(destination.machine.pid()).unwrap();
    assert!(taken >= 256 << 20, "{taken}");
    let (report, verdict) = Migration::default()
        .complete(&mut source, &mut destination, &uri)
        .unwrap();
    assert!(verdict.pages_compared >= (256 << 20) / 4096);
    lab.assert_right(&verdict, format_args!("{report:?}"));
    // Only what was sent and then given up has lost its pages.
    let kept = bytes_taken(destination.machine.pid()).unwrap();
    assert!(
        kept + report.totals.pages_discarded * 4096 >= 256 << 20,
        "{kept}"
    );
    release_and_check(&mut destination);
}

#[test]
fn a_guest_that_answers_badly_costs_no_more_than_a_migration_without_hints() {
    if skipped_without_kvm("bare, bad answers") {
        return;
    }
    for answer in ["silent", "late", "slow", "flood"] {
        // A guest that does not write after it is ready, so that the bytes can be compared exactly.
        let guest = BareGuest {
            dirty_rate: "0",
            churn: 0,
            answer,
            ..Default::default()
        };
        let with = migrate(guest.clone(), &Migration::default());
        let holes = migrate(
            guest,
            &Migration {
                hints: HintMode::Holes,
                ..Default::default()
            },
        );
        // The guest's status page and the VMM's heartbeat page go on changing; a guest that hints writes its rings, too.
        assert!(
            sent(&with) < sent(&holes) + 64,
            "{answer}: {} against {}",
            sent(&with),
            sent(&holes)
        );
        match answer {
            "silent" => assert!(hinted(&with) == 0 && sent(&with) + 64 > sent(&holes)),
            "flood" => assert!(hinted(&with) > 0),
            _ => {}
        }
    }
}

#[test]
fn hints_work_again_on_the_second_hop() {
    if skipped_without_kvm("bare, A to B to C") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut a = lab.running("a");
    let mut b = lab.move_whole(&Migration::default(), &mut a, "b");
    let c = lab.move_whole(&Migration::default(), &mut b.destination, "c");
    for report in [&b.report, &c.report] {
        assert!(hinted(report) > 0, "{report:?}");
    }
}

#[test]
fn memory_freed_during_the_migration_is_hinted_in_a_later_round() {
    if skipped_without_kvm("bare, later rounds") {
        return;
    }
    let guest = BareGuest {
        churn: 20_000,
        dirty_rate: "8M",
        ..Default::default()
    };
    let migration = Migration {
        max_bandwidth: Some(40 << 20),
        downtime_limit: 20,
        ..Default::default()
    };
    let report = migrate(guest, &migration);
    let later: u64 = report
        .rounds
        .iter()
        .skip(1)
        .map(|round| round.pages_hinted)
        .sum();
    assert!(later > 0, "{report:?}");
}

#[test]
fn a_guest_that_writes_faster_than_the_link_sends_moves_after_so_many_rounds() {
    if skipped_without_kvm("bare, at most three rounds") {
        return;
    }
    let guest = BareGuest {
        dirty_rate: "64M",
        ..Default::default()
    };
    let migration = Migration {
        max_bandwidth: Some(32 << 20),
        downtime_limit: 0,
        max_rounds: NonZeroU32::new(3),
        ..Default::default()
    };
    let report = migrate(guest, &migration);
    let pending: Vec<u64> = report
        .rounds
        .iter()
        .map(|round| round.pending_before)
        .collect();
    assert_eq!(
        pending.len(),
        4,
        "three rounds and the stopped guest's: {report:?}"
    );
    assert!(pending[3] > 0, "{report:?}");
}

#[test]
fn several_vcpus_and_memory_above_4_gib_arrive_whole() {
    if skipped_without_kvm("bare, 5 GiB") {
        return;
    }
    let guest = BareGuest {
        memory: "5G",
        vcpus: 2,
        in_use: "64M",
        freed: "64M",
        ..Default::default()
    };
    migrate(guest, &Migration::default());
}

#[test]
fn a_comparison_draws_every_round_of_every_mode() {
    if skipped_without_kvm("bare, picture") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("picture.svg");
    let options = "compare --memory 128M --in-use 16M --freed 64M --hints off,on --json --picture";
    let mut args: Vec<&str> = options.split(' ').collect();
    args.push(picture.to_str().unwrap());
    let output = lacuna(&args);
    assert!(output.status.success(), "{output:?}");
    let records = String::from_utf8(output.stdout).unwrap();
    let rounds: Vec<u64> = records
        .lines()
        .map(|line| serde_json::from_str::<Record>(line).unwrap().rounds)
        .collect();
    assert_eq!(rounds.len(), 2);
    let svg = std::fs::read_to_string(&picture).unwrap();
    let rows = svg.matches("class=\"round\"").count() as u64;
    assert_eq!(rows, rounds.iter().sum::<u64>());
    // Nothing is skipped without hints, and something is skipped with them.
    let (without, with) = svg.split_once("hints on").unwrap();
    let skipped = "<path class=\"skipped\"";
    assert!(
        !without.contains(skipped) && with.contains(skipped),
        "{svg}"
    );
}

#[test]
fn the_guest_gets_its_memory_back_after_a_migration() {
    if skipped_without_kvm("bare, done") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", false);
    Migration::default().begin(&source, &uri);
    assert!(end_of_migration(&mut source).unwrap().error_desc.is_none());
    whole_pass(&mut destination);
    let guest = status(&destination).guest.unwrap_or_default();
    assert!(guest.hint_rounds > 0 && guest.dones > 0, "{guest:?}");
}

/// Measures how much the expected downtime differs from the real one. Slow; run it by hand:
/// `cargo test -p tests --test lanes bare::the_error_of_the_expected_downtime -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement over 50 migrations"]
fn the_error_of_the_expected_downtime_over_50_migrations() {
    if skipped_without_kvm("bare, expected downtime") {
        return;
    }
    let guest = BareGuest {
        dirty_rate: "64M",
        ..Default::default()
    };
    let lab = Lab::new(guest);
    let mut source = lab.running("source");
    let mut errors = Vec::new();
    for hop in 1..=50 {
        let (mut destination, uri) = lab.receiving(format!("hop-{hop}").leak(), false);
        // A bandwidth limit every second time; it does not apply to the last round.
        let migration = Migration {
            max_bandwidth: (hop % 2 == 0).then_some(100 << 20),
            ..Default::default()
        };
        migration.begin(&source, &uri);
        ends(&mut source, MigrationState::Completed);
        destination
            .wait_until("the guest to arrive", PATIENCE, |status| {
                Ok(status.machine == MachineState::Running)
            })
            .unwrap();
        let report: MigrationReport = (source.client().unwrap())
            .ask(&Command::QueryReport)
            .unwrap();
        let error = report.expected_downtime_ms - report.downtime_ms;
        println!(
            "{hop:2}: expected {:6.2} ms, was {:6.2} ms ({error:+.2}): {} pages, {:?}",
            report.expected_downtime_ms,
            report.downtime_ms,
            report.rounds.last().map_or(0, |round| round.pending_before),
            report.downtime
        );
        errors.push(error);
        source = destination;
    }
    let mut sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    println!(
        "error: mean {:+.2} ms, median of its size {:.2} ms, 90 % below {:.2} ms, largest {:.2} ms",
        errors.iter().sum::<f64>() / errors.len() as f64,
        sizes[sizes.len() / 2],
        sizes[sizes.len() * 9 / 10],
        sizes[sizes.len() - 1]
    );
}
