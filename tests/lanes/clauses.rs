// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the tests: with one clause of the rule switched off, the oracle must find wrong pages.
//!
//! Whether a broken rule loses a page depends on timing; so each clause gets several tries with guests
//! that use hinted memory again at once, and the oracle must notice in one of them.

use crate::lab::{BareGuest, Lab, Migration, skipped_without_kvm};
use lacuna::compare::CompareError;

/// How often a clause may get away with it.
const TRIES: u64 = 12;

fn loses_pages_without(clause: &str) {
    if skipped_without_kvm(clause) {
        return;
    }
    let mut verdicts = Vec::new();
    for seed in 1..=TRIES {
        let lab = Lab::new(BareGuest {
            hold: "early",
            churn: 50_000,
            dirty_rate: "32M",
            vcpus: 2,
            seed,
            ..Default::default()
        });
        let mut source = lab.running("source");
        let (mut destination, uri) = lab.receiving("destination", true);
        let migration = Migration {
            max_bandwidth: Some(100 << 20),
            downtime_limit: 50,
            switched_off: vec![clause.to_owned()],
            ..Default::default()
        };
        match migration.complete(&mut source, &mut destination, &uri) {
            Ok((_, verdict)) if verdict.pages_wrong > 0 => {
                println!(
                    "{clause} off, seed {seed}: {} pages wrong",
                    verdict.pages_wrong
                );
                return;
            }
            Ok((report, _)) => verdicts.push(format!("{} rounds", report.rounds.len())),
            Err(CompareError::Migration(error)) => panic!("{clause}: {error}"),
            Err(error) => panic!("{clause}: {error}"),
        }
    }
    panic!("without {clause} nothing was lost in {TRIES} tries: {verdicts:?}");
}

#[test]
fn without_arming_first_pages_are_lost() {
    loses_pages_without("arm-first");
}

#[test]
fn without_dropping_stale_hints_pages_are_lost() {
    loses_pages_without("drop-stale-hints");
}

#[test]
fn without_closing_before_the_harvest_pages_are_lost() {
    loses_pages_without("close-before-harvest");
}

#[test]
fn with_a_hint_after_the_pause_pages_are_lost() {
    loses_pages_without("no-hint-after-pause");
}

#[test]
fn without_the_vmms_own_writes_pages_are_lost() {
    loses_pages_without("merge-own-writes");
}
