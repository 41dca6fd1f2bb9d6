// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether a test must be skipped on this machine. Prints why.
pub fn skipped_without_kvm(test: &str) -> bool {
    if lacuna::nested::kvm_usable() {
        return false;
    }
    spec_testing::skipped(format_args!(
        "{test}: /dev/kvm is missing or cannot be opened on this machine"
    ));
    true
}

/// The command as users get it, plus the jobs that the tests need (`examples/lacuna-under-test`).
pub fn program() -> PathBuf {
    let program = profile_folder().join("examples/lacuna-under-test");
    assert!(
        program.exists(),
        "{} is missing: run the tests with `cargo test`",
        program.display()
    );
    program
}

/// The folder in which cargo builds, to which profiles add theirs.
pub fn target_folder() -> PathBuf {
    let profile = profile_folder();
    let target = profile.parent().expect("a profile lies in a folder");
    target.to_owned()
}

fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let profile = test.parent().and_then(Path::parent);
    profile
        .expect("tests lie in target/PROFILE/deps")
        .to_owned()
}

/// Runs the command to its end and returns what it printed.
///
/// # Panics
/// If it cannot be started.
pub fn lacuna(args: &[&str]) -> std::process::Output {
    Command::new(program())
        .args(args)
        .output()
        .expect("the command starts")
}
