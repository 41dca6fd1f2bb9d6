// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest that writes faster than the link sends.

use std::num::NonZeroU32;

use lacuna::control::{Command, TuningArguments};

use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, command, ends, hinted, lacuna, release_and_check,
    skipped_without_kvm, status, tell, until_round, whole_pass,
};
use host_migrator::{MigrationReport, MigrationState};
use lacuna::compare::{Host, Record};
use lacuna::machine::Status;

/// A guest that rewrites all of its memory in use in each round over [`SLOW`].
fn busy() -> BareGuest {
    BareGuest {
        in_use: "128M",
        freed: "32M",
        dirty_rate: "1G",
        churn: 0,
        ..BareGuest::default()
    }
}

/// Bytes a second of the link.
const SLOW: u64 = 64 << 20;
/// A downtime limit in milliseconds in which that memory is not sent.
const SHORT: u64 = 5;

fn throttle() -> TuningArguments {
    TuningArguments {
        auto_converge: Some(true),
        cpu_throttle_initial: Some(50),
        cpu_throttle_increment: Some(20),
        cpu_throttle_responsive: Some(true),
        sync_interval: Some(1000),
        ..TuningArguments::default()
    }
}

#[test]
fn a_guest_that_outruns_the_link_arrives_with_a_throttle_and_not_without() {
    if skipped_without_kvm("bare, auto-converge") {
        return;
    }
    let unthrottled = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: SHORT,
        max_rounds: NonZeroU32::new(4),
        ..Default::default()
    };
    let lab = Lab::new(busy());
    let mut source = lab.running("source");
    let mut moved = lab.move_whole(&unthrottled, &mut source, "unthrottled");
    assert_eq!(moved.report.iteration_count, 5, "{:?}", moved.report);
    assert_eq!(moved.report.throttle_max_percent, 0);
    let throttled = Migration {
        max_rounds: None,
        tuning: throttle(),
        ..unthrottled
    };
    let arrived = lab.move_whole(&throttled, &mut moved.destination, "throttled");
    let report = arrived.report;
    assert!(report.throttle_max_percent >= 50, "{report:?}");
    let rounds = report.rounds.len() as u64;
    assert_eq!(report.iteration_count, rounds);
    assert_eq!(report.dirty_sync_count, rounds - 1 + report.totals.syncs);
    assert_eq!(
        status(&moved.destination).migration.cpu_throttle_percentage,
        0
    );
}

/// Leaves it to the machine how the migration ends.
fn goals(max_guest_slowdown: u8) -> TuningArguments {
    TuningArguments {
        max_guest_slowdown: Some(max_guest_slowdown),
        sync_interval: Some(1000),
        ..TuningArguments::default()
    }
}

#[test]
fn a_guest_that_outruns_the_link_arrives_when_the_machine_chooses_and_it_says_why() {
    if skipped_without_kvm("bare, controller") {
        return;
    }
    let lab = Lab::new(busy());
    let mut source = lab.running("source");
    let throttling = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: SHORT,
        tuning: TuningArguments {
            deadline: Some(600_000),
            ..goals(99)
        },
        ..Default::default()
    };
    let mut moved = lab.move_whole(&throttling, &mut source, "throttled");
    let report = &moved.report;
    let most = report.throttle_max_percent;
    assert!((1..=99).contains(&most), "{report:?}");
    let said = |report: &MigrationReport, what: &str| {
        let mut decisions = report.decisions.iter();
        assert!(decisions.any(|said| said.contains(what)), "{report:?}");
    };
    said(report, "throttles the guest");
    said(report, "stops the guest");
    // It may not take the guest's time, but may stop it for longer.
    let stopping = Migration {
        tuning: TuningArguments {
            downtime_limit_max: Some(60_000),
            ..goals(0)
        },
        ..throttling
    };
    let report = lab
        .move_whole(&stopping, &mut moved.destination, "stopped")
        .report;
    assert_eq!(report.throttle_max_percent, 0, "{report:?}");
    said(&report, "allows a downtime");
}

#[test]
fn a_guest_of_which_nothing_may_be_taken_is_looked_at_in_the_middle_of_rounds() {
    if skipped_without_kvm("bare, harvests in the middle of rounds without a throttle") {
        return;
    }
    let lab = Lab::new(busy());
    let mut source = lab.running("source");
    let migration = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: SHORT,
        max_rounds: NonZeroU32::new(3),
        tuning: TuningArguments {
            sync_interval: Some(200),
            ..goals(0)
        },
        ..Default::default()
    };
    let report = lab.move_whole(&migration, &mut source, "looked-at").report;
    assert_eq!(report.throttle_max_percent, 0);
    assert!(report.totals.syncs > 0, "{report:?}");
}

#[test]
fn a_guest_that_was_throttled_runs_at_full_speed_after_a_cancel() {
    if skipped_without_kvm("bare, cancel of a throttled guest") {
        return;
    }
    let lab = Lab::new(busy());
    let mut source = lab.running("source");
    let (_destination, uri) = lab.receiving("destination", true);
    let migration = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: SHORT,
        tuning: goals(99),
        ..Default::default()
    };
    migration.begin(&source, &uri);
    let throttled = |host: &Host| -> f64 {
        let vcpus = status(host).vcpus;
        vcpus.iter().map(|vcpu| vcpu.throttled_ms).sum()
    };
    let is_throttled = |status: &Status| Ok(status.migration.cpu_throttle_percentage > 0);
    source
        .wait_until("a throttle", PATIENCE, is_throttled)
        .unwrap();
    let held = |status: &Status| Ok(status.vcpus.iter().all(|vcpu| vcpu.throttled_ms > 0.0));
    source.wait_until("time taken", PATIENCE, held).unwrap();
    tell(&source, &Command::MigrateCancel);
    ends(&mut source, MigrationState::Cancelled);
    let status = status(&source);
    assert_eq!(status.migration.cpu_throttle_percentage, 0);
    // The last hold ends, and is counted.
    whole_pass(&mut source);
    let before = throttled(&source);
    whole_pass(&mut source);
    assert_eq!(throttled(&source), before, "nothing is taken afterwards");
}

#[test]
fn a_guest_whose_writes_are_logged_in_rings_arrives_whole_with_hints_and_throttle() {
    if skipped_without_kvm("bare, dirty rings") {
        return;
    }
    let rings = |guest: BareGuest| BareGuest {
        dirty_log: "ring",
        vcpus: 2,
        ..guest
    };
    let lab = Lab::new(rings(BareGuest::busy()));
    let mut source = lab.running("source");
    let limited = Migration {
        max_bandwidth: Some(SLOW),
        max_rounds: NonZeroU32::new(6),
        ..Default::default()
    };
    let moved = lab.move_whole(&limited, &mut source, "destination");
    assert!(hinted(&moved.report) > 0, "{:?}", moved.report);
    let lab = Lab::new(rings(busy()));
    let mut source = lab.running("source");
    let throttled = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: SHORT,
        tuning: throttle(),
        ..Default::default()
    };
    let report = lab
        .move_whole(&throttled, &mut source, "destination")
        .report;
    assert!(report.throttle_max_percent >= 50, "{report:?}");
}

#[test]
fn a_limit_for_each_vcpu_slows_a_guest_that_outruns_the_link_and_ends_with_the_migration() {
    if skipped_without_kvm("bare, dirty limit") {
        return;
    }
    let guest = |dirty_log| BareGuest {
        dirty_log,
        vcpus: 2,
        ..busy()
    };
    let limited = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: SHORT,
        tuning: TuningArguments {
            vcpu_dirty_limit: Some(4),
            sync_interval: Some(1000),
            ..TuningArguments::default()
        },
        ..Default::default()
    };
    let lab = Lab::new(guest("bitmap"));
    let source = lab.running("source");
    let error = limited
        .try_to_begin(&source, "tcp:127.0.0.1:1")
        .unwrap_err();
    assert!(error.contains("--dirty-log ring"), "{error}");

    let lab = Lab::new(guest("ring"));
    let mut source = lab.running("source");
    let (_destination, uri) = lab.receiving("given-up", true);
    limited.begin(&source, &uri);
    let is_limited = |status: &Status| Ok(status.migration.vcpu_dirty_limit == Some(4 << 20));
    source
        .wait_until("the limit", PATIENCE, is_limited)
        .unwrap();
    let nonsense = ["set", "--max-guest-slowdown", "10"];
    let error = command(&source, &nonsense).unwrap_err();
    assert!(error.contains("vcpu-dirty-limit"), "{error}");
    tell(&source, &Command::MigrateCancel);
    ends(&mut source, MigrationState::Cancelled);
    assert_eq!(status(&source).migration.vcpu_dirty_limit, None);
    let arrived = lab.move_whole(&limited, &mut source, "destination");
    assert_eq!(arrived.report.throttle_max_percent, 0);
}

/// The published test of background sync, with the slowest link that a migration takes.
#[test]
fn a_round_that_does_not_end_is_harvested_again_and_again() {
    if skipped_without_kvm("bare, background sync") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", true);
    let migration = Migration {
        max_bandwidth: Some(SLOW),
        downtime_limit: 0,
        tuning: TuningArguments {
            sync_interval: Some(100),
            ..throttle()
        },
        ..Default::default()
    };
    migration.begin(&source, &uri);
    until_round(&mut source, 2);
    let page_a_second = ["set", "--max-bandwidth", "4096"];
    assert_eq!(command(&source, &page_a_second), Ok(()));
    let mut before = status(&source).migration.ram;
    source
        .wait_until("harvests in the middle of a round", PATIENCE, |status| {
            let now = &status.migration.ram;
            if now.iteration_count != before.iteration_count {
                before = now.clone();
            }
            Ok(now.dirty_sync_count >= before.dirty_sync_count + 3)
        })
        .unwrap();
    let nonsense = ["set", "--cpu-throttle-max", "100"];
    let error = command(&source, &nonsense).unwrap_err();
    assert!(error.contains("must be 50 to 99"), "{error}");
    let fast = TuningArguments {
        max_bandwidth: Some(0),
        downtime_limit: Some(300),
        auto_converge: Some(false),
        ..TuningArguments::default()
    };
    tell(&source, &Command::MigrateSetParameters(fast));
    ends(&mut source, MigrationState::Completed);
    release_and_check(&mut destination);
}

#[test]
fn compare_shows_what_was_decided_and_what_the_guest_saw_before_during_and_after_it() {
    if skipped_without_kvm("bare, the guest's own view") {
        return;
    }
    let arguments = "compare --json --check-trace --hints on --memory 256M --vcpus 2 --in-use 32M --freed 64M \
                     --max-bandwidth 64M --dirty-log ring --max-guest-slowdown 50";
    let output = lacuna(&arguments.split_whitespace().collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let record: Record = serde_json::from_str(&text).expect("a record");
    assert!(record.is_exact(), "{text}");
    let last = record.decisions.last().expect("a decision");
    assert!(last.contains("stops the guest"), "{last}");
    let gaps = record.guest_gap_ms.expect("the guest's gaps");
    assert_eq!(gaps.max_by_vcpu.len(), 2);
    for seen in [gaps.without_migration, gaps.during, gaps.after] {
        assert!(seen.beats > 0, "{text}");
        let rising = [1.0, seen.p50, seen.p99, seen.p999, seen.max];
        assert!(rising.is_sorted(), "{text}");
    }
    let reads = record.guest_read_us.expect("the guest's reads");
    for seen in [reads.without_migration, reads.during, reads.after] {
        assert!(seen.reads > 0, "{text}");
        let rising = [0.0, seen.p50, seen.p99, seen.p999, seen.max];
        assert!(rising.is_sorted() && seen.p50 > 0.0, "{text}");
    }
}
