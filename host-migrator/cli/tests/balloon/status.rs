// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon status`, and the error if no device listens.

use std::process::Command;

use crate::command::{device, run};
use crate::rig::guest::{Guest, USUAL};

#[test]
fn a_status_follows_the_guest() {
    let daemon = device();
    let alone = run(&daemon, &["status", "--json"]).json();
    assert_eq!(
        (&alone["connected"], &alone["driver-up"]),
        (&false.into(), &false.into())
    );
    assert!(
        run(&daemon, &["status"])
            .output
            .contains("no VMM is connected")
    );
    let _guest = Guest::boot(&daemon, USUAL, 3);
    let up = run(&daemon, &["status", "--json"]).json();
    assert_eq!(
        (&up["connected"], &up["running"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&up["memory-bytes"], &up["regions"]),
        (&(32 << 20).into(), &2.into())
    );
    let features = &up["features"]["negotiated"];
    assert_eq!(*features, serde_json::json!(["stats", "free-page-hint"]));
    let text = run(&daemon, &["status"]).output;
    assert!(text.contains("running, 32.0 MiB in 2 region(s)"), "{text}");
    assert!(text.contains("page-poison (not taken)"), "{text}");
}

#[test]
fn a_device_that_is_not_there_is_named_with_the_flag_it_should_have() {
    let output = Command::new(env!("CARGO_BIN_EXE_lacuna"))
        .args([
            "balloon",
            "status",
            "--control-socket",
            "/nobody/listens/here",
        ])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("/nobody/listens/here"), "{errors}");
    assert!(errors.contains("--control-socket"), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}
