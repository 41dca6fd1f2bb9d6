// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench transport`: every arm moves all of memory and is checked; what cannot run says why.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const ALL_ARMS: &str = "bare-scratch,bare-fresh,bare-populated,lacuna-fresh,lacuna-populated,bare-unix-fresh,\
     bare-unix-populated,lacuna-unix-fresh,lacuna-unix-populated,lacuna-lz4,lacuna-zstd";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command
        .args(["bench", "transport"])
        .args(args)
        .stdin(Stdio::null());
    command
}

fn bench(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The arms of a report by name.
fn arms(report: &Value) -> BTreeMap<String, Value> {
    let arms = report["arms"].as_array().unwrap().iter();
    arms.map(|arm| (arm["arm"].as_str().unwrap().to_owned(), arm.clone()))
        .collect()
}

#[test]
fn every_arm_moves_all_of_memory_and_its_destination_is_compared() {
    for (content, pages) in [("random", 1000), ("compressible", 257), ("mixed", 256)] {
        let size = format!("{}K", pages * 4);
        let report = json(&bench(&[
            "--size",
            &size,
            "--content",
            content,
            "--runs",
            "2",
            "--arms",
            ALL_ARMS,
            "--json",
        ]));
        assert_eq!(report["content"], content);
        assert_eq!(report["size-bytes"], pages * 4096);
        let arms = arms(&report);
        assert_eq!(arms.len(), ALL_ARMS.split(',').count());
        for (name, arm) in &arms {
            let samples = arm["samples"].as_array().unwrap();
            assert_eq!(samples.len(), 2, "{name}");
            for sample in samples {
                assert_eq!(sample["bytes"], pages * 4096, "{name}");
                assert!(sample["gb-per-s"].as_f64().unwrap() > 0.0, "{name}");
                let compared = if name == "bare-scratch" { 0 } else { pages };
                assert_eq!(sample["pages-compared"], compared, "{name}");
                assert_eq!(sample["pages-wrong"], 0, "{name}");
                assert!(sample["cpu-ms"].as_f64().unwrap() > 0.0, "{name}");
                let is_populated = name.ends_with("populated");
                assert_eq!(sample["populate-ms"].is_f64(), is_populated, "{name}");
                if name.starts_with("lacuna") {
                    let wire = sample["wire-bytes"].as_u64().unwrap();
                    let compresses = name.ends_with("lz4") || name.ends_with("zstd");
                    let shrinks = compresses && content != "random";
                    assert_eq!(wire > pages * 4096, !shrinks, "{name}: {wire}");
                }
            }
        }
        let compared: Vec<_> = report["ratios"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ratio| (ratio["arm"].clone(), ratio["baseline"].clone()))
            .collect();
        let expected = [
            ("lacuna-fresh", "bare-fresh"),
            ("lacuna-populated", "bare-populated"),
            ("lacuna-unix-fresh", "bare-unix-fresh"),
            ("lacuna-unix-populated", "bare-unix-populated"),
            ("lacuna-lz4", "lacuna-fresh"),
            ("lacuna-zstd", "lacuna-fresh"),
        ];
        assert_eq!(compared, expected.map(|(a, b)| (a.into(), b.into())));
    }
}

#[test]
fn several_connections_of_the_bare_loop_move_every_page_once() {
    for channels in ["2", "7"] {
        let report = json(&bench(&[
            "--size",
            "1M",
            "--channels",
            channels,
            "--runs",
            "1",
            "--arms",
            "bare-fresh,bare-unix-populated",
            "--json",
        ]));
        for (name, arm) in arms(&report) {
            assert_eq!(arm["samples"][0]["pages-compared"], 256, "{name}");
            assert_eq!(arm["samples"][0]["pages-wrong"], 0, "{name}");
        }
    }
}

#[test]
fn an_arm_that_cannot_run_says_why_and_the_others_run() {
    let args = [
        "--size",
        "64K",
        "--runs",
        "1",
        "--arms",
        "iperf3,bare-fresh",
        "--json",
    ];
    let report = json(&command(&args).env("PATH", "/nowhere").output().unwrap());
    let arms = arms(&report);
    let why = arms["iperf3"]["skipped"].as_str().unwrap();
    assert!(why.contains("package iperf3"), "{why}");
    assert_eq!(arms["iperf3"]["samples"], Value::Array(Vec::new()));
    assert_eq!(arms["bare-fresh"]["samples"].as_array().unwrap().len(), 1);
}

#[test]
fn iperf3_reports_what_its_server_received() {
    if !in_path("iperf3") {
        return spec_testing::skipped("iperf3 is not installed on this machine");
    }
    for channels in ["1", "3"] {
        let report = json(&bench(&[
            "--size",
            "8M",
            "--channels",
            channels,
            "--runs",
            "2",
            "--arms",
            "iperf3",
            "--json",
        ]));
        let samples = report["arms"][0]["samples"].clone();
        for sample in samples.as_array().unwrap() {
            // Not always all that its client sent: the server stops counting when the client says that it is done.
            assert!(sample["bytes"].as_u64().unwrap() > 0, "{report}");
            assert!(sample["gb-per-s"].as_f64().unwrap() > 0.0, "{report}");
        }
    }
}

#[test]
fn qemu_migrates_the_same_memory_and_its_destination_is_compared() {
    if !in_path("qemu-system-x86_64") {
        return spec_testing::skipped("QEMU is not installed on this machine");
    }
    for channels in ["1", "2"] {
        let report = json(&bench(&[
            "--size",
            "1M",
            "--channels",
            channels,
            "--runs",
            "1",
            "--arms",
            "qemu-fresh,bare-fresh",
            "--json",
        ]));
        let sample = &arms(&report)["qemu-fresh"]["samples"][0];
        assert_eq!(sample["pages-compared"], 256);
        assert_eq!(sample["pages-wrong"], 0);
        assert!(sample["wire-bytes"].as_u64().unwrap() > 1 << 20, "{report}");
    }
}

#[test]
fn a_qemu_that_does_not_start_is_an_error_that_says_why() {
    let output = command(&["--size", "64K", "--arms", "qemu-fresh"])
        .env("LACUNA_QEMU", "/bin/false")
        .output()
        .unwrap();
    let said = complaint(&output);
    assert!(said.contains("QEMU failed: it ended with"), "{said}");
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[test]
fn the_table_names_every_arm_and_the_picture_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("arms.svg");
    let output = bench(&[
        "--size",
        "64K",
        "--runs",
        "1",
        "--arms",
        "bare-fresh,lacuna-fresh",
        "--picture",
        picture.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("lacuna-fresh") && table.contains(" of bare-fresh"));
    assert!(table.contains("0/16"), "{table}");
    let svg = std::fs::read_to_string(picture).unwrap();
    roxmltree::Document::parse(&svg).unwrap();
}

#[test]
fn sizes_and_counts_that_make_no_sense_are_refused_with_advice() {
    for (args, advice) in [
        (&["--size", "6K"][..], "multiple"),
        (&["--size", "0"], "multiple"),
        (&["--size", "64T"], "take a smaller --size"),
        (&["--size", "16E"], "not a size"),
        (
            &["--size", "8K", "--channels", "3"],
            "fewer pages than 3 connections",
        ),
        (&["--channels", "0"], "0 is not in 1..=128"),
        (&["--channels", "129"], "129 is not in 1..=128"),
        (&["--runs", "0"], "--runs"),
        (&["--arms", "carrier-pigeon"], "carrier-pigeon"),
    ] {
        let said = complaint(&bench(args));
        assert!(said.contains(advice), "{args:?}: {said}");
    }
}
