// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `lacuna balloon estimate` says of a guest, and what its migration then sends.

use host_migrator::MigrationState;
use lacuna::control::HintMode;
use serde_json::Value;

use crate::lab::{BareGuest, Lab, Migration, ends, lacuna, skipped_without_kvm};

#[test]
fn an_estimate_is_what_a_migration_with_hints_then_sends() {
    if skipped_without_kvm("bare, balloon estimate") {
        return;
    }
    let lab = Lab::new(BareGuest {
        memory: "512M",
        in_use: "96M",
        freed: "256M",
        dirty_rate: "0",
        churn: 0,
        ..BareGuest::default()
    });
    let mut source = lab.running("source");
    let control = source.balloon_control.to_str().expect("a path in UTF-8");
    let args = ["balloon", "estimate", "--json", "--control-socket", control];
    let output = lacuna(&args);
    assert!(output.status.success(), "{output:?}");
    let estimate: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let expected = |how: &str| estimate[how]["wire-bytes"].as_u64().expect("a number") as f64;
    let sent = |hints, source: &mut _, name| {
        let (mut destination, uri) = lab.receiving(name, true);
        let migration = Migration {
            hints,
            ..Migration::default()
        };
        let (report, verdict) =
            (migration.complete(source, &mut destination, &uri)).expect("an end");
        lab.assert_right(&verdict, name);
        (report.wire_bytes as f64, destination)
    };
    let (with, destination) = sent(HintMode::On, &mut source, "with");
    ends(&mut source, MigrationState::Completed);
    // Some pages of zeros, such as tables that were never filled, cost less than a page.
    let ratio = with / expected("with-hints");
    assert!((0.9..=1.05).contains(&ratio), "{ratio}: {estimate}");
    drop((source, destination));

    let mut source = lab.running("again");
    let (without, _destination) = sent(HintMode::Off, &mut source, "without");
    let ratio = without / expected("without-hints");
    assert!((0.6..=1.05).contains(&ratio), "{ratio}: {estimate}");
    assert!(without > 2.0 * with, "{without} and {with}");
}
