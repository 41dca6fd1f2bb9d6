// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the tests: if one clause of the rule is switched off, the oracle must find wrong pages, and the checker of
//! traces must find the event that broke the rule.
//!
//! Whether a broken rule loses a page depends on timing. So each clause gets several tries with guests that reuse hinted
//! memory at once, and the oracle must notice in one of them. The checker must notice in all.

use std::num::NonZeroU32;

use crate::clause_switches::program_with_switches;
use crate::lab::{BareGuest, Lab, Migration, lacuna, skipped_without_kvm, whole_pass};
use spec::trace::check::{Clause, Verdict};

/// How many tries each clause gets.
const TRIES: u64 = 12;

/// How busy the guest is and how fast the link is.
#[derive(Clone, Copy)]
struct Pace {
    downtime_limit: u64,
    max_rounds: Option<NonZeroU32>,
    churn: u64,
    dirty_rate: &'static str,
    max_bandwidth: u64,
}

/// A short migration: pages lost at its beginning or end are not written again.
const SHORT: Pace = Pace {
    downtime_limit: 50,
    max_rounds: None,
    churn: 10_000,
    dirty_rate: "4M",
    max_bandwidth: 400 << 20,
};
/// A migration with many rounds, and so with many harvests and epochs.
const LONG: Pace = Pace {
    downtime_limit: 0,
    max_rounds: NonZeroU32::new(20),
    churn: 30_000,
    dirty_rate: "16M",
    max_bandwidth: 220 << 20,
};

fn loses_pages_without(clause: &'static str, pace: Pace, broken: Clause) {
    if skipped_without_kvm(clause) {
        return;
    }
    let mut verdicts = Vec::new();
    for seed in 1..=TRIES {
        let guest = BareGuest {
            hold: "early",
            churn: pace.churn,
            dirty_rate: pace.dirty_rate,
            vcpus: 2,
            seed,
            ..Default::default()
        };
        let lab = Lab::of(program_with_switches().to_owned(), guest);
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving("destination", true);
        let migration = Migration {
            max_bandwidth: Some(pace.max_bandwidth),
            downtime_limit: pace.downtime_limit,
            max_rounds: pace.max_rounds,
            switched_off: vec![clause],
            ..Default::default()
        };
        let result = migration.complete(&mut source, &mut destination, &uri);
        match lab.rule().0 {
            Verdict::Broken(breach) => {
                assert_eq!(breach.clause, broken, "{clause} off: {breach}");
                println!("{clause} off, seed {seed}: {breach}");
            }
            other => panic!("{clause} off, seed {seed}: {other}"),
        }
        match result {
            Ok((_, verdict)) if verdict.pages_wrong > 0 => {
                println!(
                    "{clause} off, seed {seed}: {} pages wrong",
                    verdict.pages_wrong
                );
                return;
            }
            Ok((report, _)) => verdicts.push(format!("{} rounds", report.rounds.len())),
            Err(error) => panic!("{clause}: {error}"),
        }
    }
    panic!("without {clause} nothing was lost in {TRIES} tries: {verdicts:?}");
}

#[test]
fn without_arming_first_pages_are_lost() {
    loses_pages_without("arm-first", SHORT, Clause::ArmFirst);
}

#[test]
fn without_forgetting_old_hints_pages_are_lost() {
    loses_pages_without("forget-old-hints", LONG, Clause::CloseBeforeHarvest);
}

#[test]
fn without_closing_before_the_harvest_pages_are_lost() {
    loses_pages_without("close-before-harvest", LONG, Clause::CloseBeforeHarvest);
}

#[test]
fn with_a_hint_after_the_pause_pages_are_lost() {
    loses_pages_without("no-hint-after-pause", SHORT, Clause::NoHintAfterPause);
}

#[test]
fn without_the_vmms_own_writes_pages_are_lost() {
    loses_pages_without("merge-own-writes", SHORT, Clause::HarvestEverything);
}

#[test]
fn the_program_that_users_get_refuses_to_switch_a_clause_off() {
    let send = [
        "send",
        "unix:/nowhere",
        "--control",
        "/nowhere",
        "--switch-off",
        "arm-first",
    ];
    let output = lacuna(&send);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("unexpected argument '--switch-off'"),
        "{said}"
    );
}

#[test]
fn the_machine_that_users_get_refuses_a_migration_without_a_clause_and_runs_on() {
    let test = "the_machine_that_users_get_refuses_a_migration_without_a_clause_and_runs_on";
    if skipped_without_kvm(test) {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let migration = Migration {
        switched_off: vec!["arm-first"],
        ..Default::default()
    };
    let why = migration
        .try_to_begin(&source, "unix:/nowhere")
        .unwrap_err();
    assert!(why.contains("unknown field `switched-off`"), "{why}");
    assert_eq!(whole_pass(&mut source).wrong, 0);
}
