// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench file`: every arm saves or restores all of memory and is checked; what cannot run says why.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bench(args: &[&str], qemu: &str) -> (Output, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args(["bench", "file", "--size", "4M", "--folder"])
        .arg(folder.path())
        .args(args)
        .env("LACUNA_QEMU", qemu)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output, folder)
}

fn arms(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["arms"].as_array().unwrap().clone()
}

#[test]
fn every_save_and_restore_is_compared_page_by_page() {
    for stride in ["1", "3"] {
        let flags = [
            "--runs",
            "2",
            "--channels",
            "1,3",
            "--block-sizes",
            "1M",
            "--direct-io",
            "auto,off",
            "--stride",
            stride,
            "--json",
        ];
        let (output, folder) = bench(&flags, "none");
        let arms = arms(&output);
        let names = arms.iter().map(|arm| arm["arm"].as_str().unwrap());
        let count = |name: &str| names.clone().filter(|found| *found == name).count();
        let counts = ["dd-write", "save", "qemu-save", "dd-read", "restore"].map(count);
        assert_eq!(counts, [1, 4, 2, 1, 4]);
        for arm in &arms {
            let samples = arm["samples"].as_array().unwrap();
            if arm["arm"] == "qemu-save" {
                assert!(arm["skipped"].as_str().unwrap().contains("QEMU"), "{arm}");
                continue;
            }
            assert_eq!(samples.len(), 2, "{arm}");
            assert!(arm["median-mb-per-s"].as_f64().unwrap() > 0.0, "{arm}");
            assert!(arm["median-pages-per-s"].as_f64().unwrap() > 0.0, "{arm}");
            for (turn, sample) in samples.iter().enumerate() {
                let compared = match arm["arm"].as_str() {
                    Some("dd-write") => 0,
                    Some("save") if turn > 0 => 0,
                    _ => 1024,
                };
                assert_eq!(sample["pages-compared"], compared, "{arm}");
                assert_eq!(sample["pages-wrong"], 0, "{arm}");
            }
            if arm["arm"] == "save" || arm["arm"] == "restore" {
                assert!(arm["to-best-dd"].as_f64().unwrap() > 0.0, "{arm}");
            }
        }
        // Nothing is left on the disk.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_table_and_the_picture_have_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("rates.svg");
    let flags = ["--runs", "1", "--channels", "1,2", "--block-sizes", "1M,4M"];
    let (output, _files) = bench(
        &[&flags[..], &["--picture", picture.to_str().unwrap()]].concat(),
        "none",
    );
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("O_DIRECT"), "{said}");
        spec_testing::skipped(said);
        return;
    }
    let table = String::from_utf8(output.stdout).unwrap();
    for arm in [
        "dd-write, 4.00 MiB, direct",
        "save, 2 ch, direct",
        "restore, 1 ch",
        "qemu-save, 2 ch, direct did not run",
    ] {
        assert!(table.contains(arm), "{arm}: {table}");
    }
    let svg = fs::read_to_string(picture).unwrap();
    assert!(
        svg.contains("save, direct") && svg.contains("restore, page cache"),
        "{svg}"
    );
}
