// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The outer machine of the nested lane, with a shell in it in place of `lacuna`. It needs QEMU, busybox
//! and a Debian mirror, so `tests/run nested` runs it and a plain `cargo test` does not.

use std::path::Path;
use std::time::Duration;

use lacuna::nested::{Lane, Line, MachineError, NestedError, Settings};

fn lane(timeout: Duration) -> Result<Lane, NestedError> {
    let settings = Settings {
        memory_bytes: 1 << 30,
        timeout,
    };
    Lane::prepare(Path::new("/bin/sh"), settings)
}

/// Whether this machine can run the lane; says why not.
fn available() -> bool {
    lacuna::nested::available()
        .inspect_err(|error| spec_testing::skipped(error))
        .is_ok()
}

/// Runs a shell script in the outer machine: its exit status, output lines and error lines.
fn run(lane: &mut Lane, script: &str) -> Result<(i32, Vec<String>, Vec<String>), NestedError> {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let status = lane.run(&["-c", script], |line| match line {
        Line::Output(line) => output.push(line.to_owned()),
        Line::Error(line) => errors.push(line.to_owned()),
    })?;
    Ok((status, output, errors))
}

#[test]
#[ignore = "needs QEMU: tests/run nested"]
fn a_command_in_the_lane_finds_kvm_with_nested_paging() {
    if !available() {
        return;
    }
    let mut lane = lane(Duration::from_secs(120)).unwrap();
    let script = "test -c /dev/kvm && echo kvm; read npt < /sys/module/kvm_amd/parameters/npt; \
        echo npt $npt; echo nested $LACUNA_NESTED; echo \"it's\" >&2; exit 3";
    let (status, output, errors) = run(&mut lane, script).unwrap();
    assert_eq!(output, ["kvm", "npt Y", "nested 1"]);
    assert_eq!(errors, ["it's"]);
    assert_eq!(status, 3);

    // The next job takes the place of the first.
    let (status, output, _) = run(&mut lane, "echo again").unwrap();
    assert_eq!((status, output), (0, vec!["again".to_owned()]));
}

#[test]
#[ignore = "needs QEMU: tests/run nested"]
fn a_machine_that_dies_or_never_ends_is_an_error_with_its_console() {
    if !available() {
        return;
    }
    let mut lane = lane(Duration::from_secs(60)).unwrap();
    let crash = run(&mut lane, "echo c > /proc/sysrq-trigger").unwrap_err();
    let NestedError::Machine(MachineError::Stopped { console }) = crash else {
        panic!("{crash}");
    };
    assert!(console.contains("sysrq triggered crash"), "{console}");

    let mut lane = self::lane(Duration::from_secs(10)).unwrap();
    let hang = run(&mut lane, "while :; do :; done").unwrap_err();
    assert!(
        matches!(hang, NestedError::Machine(MachineError::Timeout { .. })),
        "{hang}"
    );
}
