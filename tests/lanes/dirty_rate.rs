// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna dirty-rate` of guests whose rate is known.

use host_migrator::MigrationState;
use lacuna::compare::Host;
use lacuna::control::{Command, DirtyRateInfo, DirtyRateState};
use serde_json::Value;

use crate::lab::{BareGuest, Lab, Migration, command, ends, lacuna, skipped_without_kvm};

/// What else than its memory in use a guest may write: its tables, rings and status.
const BESIDES: f64 = (2 << 20) as f64;
const IN_USE: f64 = (32 << 20) as f64;

/// A guest that rewrites all of its memory in use many times a second, or nothing.
fn guest(dirty_rate: &'static str, dirty_log: &'static str) -> BareGuest {
    BareGuest {
        dirty_rate,
        dirty_log,
        in_use: "32M",
        churn: 0,
        ..BareGuest::default()
    }
}

/// What is said of the guest of `host` after `seconds`; or why nothing is.
fn measure(host: &Host, mode: &str, seconds: &str) -> Result<Value, String> {
    let control = host.control.to_str().expect("a path in UTF-8");
    let output = lacuna(&[
        "dirty-rate",
        "--json",
        "--control",
        control,
        "--mode",
        mode,
        "--seconds",
        seconds,
    ]);
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn number(answer: &Value, name: &str) -> f64 {
    answer[name]
        .as_f64()
        .unwrap_or_else(|| panic!("{name}: {answer}"))
}

#[test]
fn each_way_finds_what_a_guest_writes_and_that_an_idle_one_writes_nothing() {
    if skipped_without_kvm("bare, dirty-rate") {
        return;
    }
    for log in ["bitmap", "ring"] {
        for dirty_rate in ["1G", "0"] {
            let lab = Lab::new(guest(dirty_rate, log));
            let source = lab.running("source");
            for mode in ["sampling", log] {
                let answer = match measure(&source, mode, "2") {
                    Err(error) if error.contains("no dirty rings") => {
                        return spec_testing::skipped(error);
                    }
                    answer => answer.expect("a rate"),
                };
                let (distinct, rate) = (
                    number(&answer, "distinct-bytes"),
                    number(&answer, "dirty-rate"),
                );
                let seconds = answer["dirty-rate-by-second"].as_array().expect("a list");
                assert_eq!(seconds.len(), 2, "{answer}");
                let written = match dirty_rate {
                    "0" => 0.0..=BESIDES,
                    _ => 0.95 * IN_USE..=IN_USE + BESIDES,
                };
                assert!(written.contains(&distinct), "{mode}: {answer}");
                let vcpus = answer["vcpu-dirty-rate"].as_array().map(Vec::as_slice);
                let of_vcpus: f64 = (vcpus.unwrap_or_default().iter())
                    .filter_map(Value::as_f64)
                    .sum();
                assert_eq!(vcpus.is_some(), mode == "ring", "{answer}");
                assert!(
                    mode != "ring" || (of_vcpus - rate).abs() <= 0.01 * rate,
                    "{answer}"
                );
            }
        }
    }
}

#[test]
fn a_measurement_gives_way_to_a_migration_and_samples_are_taken_beside_it() {
    if skipped_without_kvm("bare, dirty-rate beside a migration") {
        return;
    }
    let lab = Lab::new(guest("64M", "bitmap"));
    let mut source = lab.running("source");
    let error = measure(&source, "ring", "1").expect_err("no rings");
    assert!(error.contains("--dirty-log ring"), "{error}");
    std::thread::scope(|scope| {
        let measurer = scope.spawn(|| measure(&source, "bitmap", "60"));
        spec_testing::eventually("the measurement to begin", || {
            let mut client = source.client().expect("the machine listens");
            let info: DirtyRateInfo = client.ask(&Command::QueryDirtyRate).expect("an answer");
            (info.status == DirtyRateState::Measuring).then_some(())
        });
        let error = measure(&source, "bitmap", "1").expect_err("one is under way");
        assert!(error.contains("already"), "{error}");
        let (_destination, uri) = lab.receiving("destination", true);
        Migration::without_end().begin(&source, &uri);
        let error = measurer
            .join()
            .expect("an end")
            .expect_err("it was broken off");
        assert!(error.contains("a migration has begun"), "{error}");
        let error = measure(&source, "bitmap", "1").expect_err("a migration is under way");
        assert!(
            error.contains("under way already; --mode sampling"),
            "{error}"
        );
        let sampled = measure(&source, "sampling", "1").expect("a rate");
        assert!(number(&sampled, "dirty-rate") > 0.0, "{sampled}");
        assert_eq!(command(&source, &["cancel"]), Ok(()));
    });
    ends(&mut source, MigrationState::Cancelled);
    measure(&source, "bitmap", "1").expect("the log is free again");
    lab.move_whole(&Migration::default(), &mut source, "next");
    let error = measure(&source, "sampling", "1").expect_err("the guest has gone");
    assert!(error.contains("no guest runs here"), "{error}");
}
