// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest is handed over before its memory: every page comes, whatever breaks, and it never runs twice.

use serde_json::Value;

use crate::lab::{lacuna, skipped_without_postcopy};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use lacuna::args::CutKind;

/// How many connections the lane of recoveries breaks; more with this variable.
const RUNS: &str = "LACUNA_RANDOM_RUNS";

/// Compares a guest of 256 MiB, in all modes of `flags`. Each migration is made twice: to a guest that is held, every page of which is
/// compared; and to one that runs, and checks its pages itself.
fn compare(flags: &[&str]) -> Vec<Value> {
    let guest = [
        "compare",
        "--memory",
        "256M",
        "--in-use",
        "48M",
        "--freed",
        "96M",
        "--check-trace",
        "--json",
    ];
    let output = lacuna(&[&guest, flags].concat());
    assert!(output.status.success(), "{flags:?}: {output:?}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let records = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let records: Vec<Value> = records.collect();
    for record in &records {
        assert_eq!(record["pages_wrong"], 0, "{record}");
        assert_eq!(record["guest_wrong"], 0, "{record}");
        assert_eq!(record["pages_compared"], 256 << 8, "{record}");
    }
    records
}

#[test]
fn a_guest_that_goes_before_its_memory_gets_every_page_with_hints_and_without() {
    if skipped_without_postcopy("postcopy, at once and after a round") {
        return;
    }
    for when in ["at-once", "1"] {
        let records = compare(&[
            "--postcopy",
            when,
            "--hints",
            "off,on",
            "--dirty-rate",
            "16M",
            "--vcpus",
            "2",
        ]);
        let [off, on] = &records[..] else {
            panic!("{records:?}")
        };
        for record in [off, on] {
            assert!(record["postcopy_promised"].as_u64() > Some(0), "{record}");
            assert_eq!(record["recoveries"], 0, "{record}");
            let has_waited = record["faults"].as_u64() > Some(0);
            assert_eq!(record["fault_waits"].is_array(), has_waited, "{record}");
        }
        let bytes = |record: &Value| record["wire_bytes"].as_u64().unwrap();
        assert!(bytes(on) * 2 < bytes(off), "hints save nothing: {on}");
        if when == "at-once" {
            let promised = |record: &Value| record["postcopy_promised"].as_u64().unwrap();
            // What is free is not promised. The guest writes while its hints are waited for.
            assert!(promised(on) * 2 < promised(off), "{on}");
        }
    }
}

#[test]
fn a_guest_that_would_never_arrive_goes_before_its_memory_and_one_that_would_does_not() {
    if skipped_without_postcopy("postcopy, when stalled") {
        return;
    }
    let flags = [
        "--postcopy",
        "when-stalled",
        "--hints",
        "on",
        "--sync-interval",
        "500",
    ];
    // In the downtime the limit of the bandwidth does not hold.
    let slow = ["--max-bandwidth", "64M", "--downtime-limit", "5"];
    for (rate, goes_before) in [("1G", true), ("1M", false)] {
        let load = ["--dirty-rate", rate, "--churn", "0"];
        let records = compare(&[&flags[..], &slow, &load].concat());
        let [record] = &records[..] else {
            panic!("{records:?}")
        };
        let promised = record["postcopy_promised"].as_u64().unwrap_or_default();
        assert_eq!(promised > 0, goes_before, "{record}");
        let decisions = record["decisions"].to_string();
        let said = decisions.contains("hands the guest over before its memory");
        assert_eq!(said, goes_before, "{decisions}");
        assert_eq!(record["throttle_max_percent"], 0, "{record}");
    }
}

#[test]
fn compressed_and_encrypted_lanes_bring_a_guest_too() {
    if skipped_without_postcopy("postcopy, TLS") {
        return;
    }
    compare(&[
        "--postcopy",
        "at-once",
        "--hints",
        "on",
        "--tls",
        "--multifd-compression",
        "lz4",
        "--multifd-channels",
        "3",
    ]);
}

#[test]
fn a_guest_whose_connection_breaks_gets_the_rest_of_its_memory_after_each_recovery() {
    if skipped_without_postcopy("postcopy, recovery") {
        return;
    }
    let runs: u64 = std::env::var(RUNS).map_or(2, |runs| runs.parse().expect(RUNS));
    let mut random = spec::stamp::Random::new(15);
    for run in 0..runs {
        // All kinds in turn: two runs have each.
        let kinds = CutKind::value_variants().iter().cycle();
        let kinds = kinds
            .filter_map(ValueEnum::to_possible_value)
            .skip(run as usize * 3);
        let cut = |kind: PossibleValue| format!("{}:{}", random.below(150), kind.get_name());
        let cuts: Vec<String> = kinds.take(3).map(cut).collect();
        let seed = run.to_string();
        let mut flags = vec![
            "--postcopy",
            "at-once",
            "--hints",
            "on",
            "--dirty-rate",
            "16M",
            "--seed",
            &seed,
            // So that it lasts.
            "--max-postcopy-bandwidth",
            "64M",
            "--peer-timeout",
            "3",
        ];
        flags.extend(cuts.iter().flat_map(|cut| ["--cut", cut.as_str()]));
        let records = compare(&flags);
        println!(
            "cuts after {cuts:?}: {} recoveries",
            records[0]["recoveries"]
        );
        assert!(records[0]["recoveries"].as_u64() > Some(0), "{records:?}");
    }
}

#[test]
fn a_guest_goes_on_when_a_machine_is_killed_that_has_saved_its_half() {
    if skipped_without_postcopy("postcopy, a machine is killed") {
        return;
    }
    let runs: u64 = std::env::var(RUNS).map_or(1, |runs| runs.parse().expect(RUNS));
    let mut random = spec::stamp::Random::new(18);
    for run in 0..runs {
        for (side, ended) in [("source", "file"), ("destination", "reconciled")] {
            let (kill, seed) = (format!("{side}:{}", random.below(300)), run.to_string());
            let killed = &compare(&[
                "--postcopy",
                "at-once",
                "--hints",
                "on",
                "--dirty-rate",
                "16M",
                "--seed",
                &seed,
                "--max-postcopy-bandwidth",
                "16M",
                "--kill",
                &kill,
            ])[0]["killed"];
            println!("{kill}: {killed}");
            assert_eq!(killed["side"], side);
            assert_eq!(killed["pages-compared"], 256 << 8);
            assert_eq!(killed["pages-wrong"], 0);
            // All memory may have come before.
            if killed["pages-missing"] != 0 {
                assert_eq!(killed["ended"], ended);
            }
        }
    }
}

#[test]
fn flags_that_mean_nothing_for_a_postcopy_are_refused() {
    for (flags, said) in [
        (&["--postcopy", "0"][..], "number of rounds"),
        (
            &["--postcopy", "1", "--transport", "local"],
            "--postcopy is for pages",
        ),
        (
            &["--postcopy", "1", "--transport", "file"],
            "--postcopy is for pages",
        ),
        (&["--cut", "5"], "--postcopy"),
        (&["--kill", "source"], "--postcopy"),
        (
            &["--postcopy", "1", "--kill", "source", "--transport", "unix"],
            "--transport tcp",
        ),
        (
            &["--postcopy", "1", "--kill", "source", "--guest", "linux"],
            "bare guest",
        ),
    ] {
        let refused = lacuna(&[&["compare"], flags].concat());
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && text.contains(said),
            "{flags:?}: {text}"
        );
    }
}
