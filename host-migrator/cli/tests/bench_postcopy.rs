// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench postcopy`: every page that a thread waited for is right, and a hinted one is asked of nobody.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output, Stdio};

use host_migrator::paging::Userfaultfd;
use serde_json::Value;
use spec_testing::skipped;

const PAGES: u64 = 16 << 8;

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(["bench", "postcopy", "--size", "16M"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn cannot_run(test: &str) -> bool {
    let refused = Userfaultfd::open(false).err();
    refused
        .map(|why| skipped(format!("{test}: {why}")))
        .is_some()
}

#[test]
fn every_arm_gets_right_pages_and_a_hinted_page_is_asked_of_nobody() {
    if cannot_run("bench postcopy") {
        return;
    }
    let output = bench(&[
        "--touches",
        "300",
        "--runs",
        "2",
        "--delay-ms",
        "1",
        "--json",
    ]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let arms = report["arms"].as_array().unwrap();
    let names: Vec<&str> = arms
        .iter()
        .map(|arm| arm["arm"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 12, "{names:?}");
    for arm in arms {
        let name = arm["arm"].as_str().unwrap();
        let samples = arm["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 2, "{name}");
        for sample in samples {
            let compared = match name {
                "ping-pong" | "bare-zero" => 0,
                "fault-pushing" | "push-1" | "push-4" => PAGES,
                _ => 300,
            };
            assert_eq!(sample["pages-compared"], compared, "{name}");
            assert_eq!(sample["pages-wrong"], 0, "{name}");
            let requests = sample["requests"].as_u64();
            match name {
                "ping-pong" | "bare-fault" | "bare-zero" => assert_eq!(requests, None, "{name}"),
                "hinted" | "push-1" | "push-4" => assert_eq!(requests, Some(0), "{name}"),
                // With the push, all may have come before the first touch.
                "fault-pushing" => {}
                _ => assert!(requests > Some(0), "{name}: {sample}"),
            }
            if name == "hinted" {
                assert!(sample["waits"].as_u64() > Some(0), "{sample}");
            }
        }
    }
    let ratios = report["ratios"].as_array().unwrap();
    assert!(
        ratios
            .iter()
            .any(|ratio| ratio["of"] == "hinted / bare-zero, p50")
    );
}

#[test]
fn arms_can_be_chosen_and_a_link_without_room_is_refused() {
    let output = bench(&[
        "--arms",
        "ping-pong,ping-pong",
        "--touches",
        "10",
        "--runs",
        "1",
    ]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.matches("ping-pong").count(), 1, "{table}");
    let output = bench(&["--window", "0"]);
    assert!(!output.status.success());
}
