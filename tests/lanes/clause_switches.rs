// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A second build of the program under test, in which clauses of the rule can be switched off.
//!
//! rustc's flags set `cfg(clause_switches)` for all crates, so this build has a target folder of its own. The tests
//! that need it build it once. All other tests use the program that users get.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The target folder, which `tests/run` and `.ci/run` use, too.
const FOLDER: &str = "clause-switches";
const FLAGS: [&str; 2] = ["--cfg", "clause_switches"];
const EXAMPLE: &str = "lacuna-under-test";

/// The command in which clauses can be switched off. Builds it at the first call, which takes minutes in a new target
/// folder.
///
/// # Panics
/// If cargo cannot build it.
pub fn program_with_switches() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    let mut cargo = cargo();
    cargo
        .args(["build", "--package", "tests", "--example", EXAMPLE])
        .arg("--message-format=json-render-diagnostics")
        .arg("--target-dir")
        .arg(crate::lab::target_folder().join(FOLDER))
        .stdout(Stdio::piped());
    let (name, flags) = flags(|name| std::env::var(name).ok());
    cargo.env(name, flags);
    let mut building = cargo.spawn().expect("cargo starts");
    let messages = building.stdout.take().expect("standard output is a pipe");
    let program = std::io::BufReader::new(messages)
        .lines()
        .filter_map(|line| executable(&line.expect("cargo's messages are lines")))
        .last();
    let status = building.wait().expect("cargo ends");
    assert!(status.success(), "{cargo:?} failed: {status}");
    program.unwrap_or_else(|| panic!("{cargo:?} does not name the program that it built"))
}

/// The cargo that runs this test, in this folder.
fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// The program that one of cargo's messages names, if it is the requested one.
fn executable(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let program = message["executable"].as_str()?;
    (message["target"]["name"] == EXAMPLE).then(|| program.into())
}

/// The environment variable with rustc's flags, and its value with our flags added. Cargo reads `RUSTFLAGS` only if the
/// other variable is not set.
fn flags(variable: impl Fn(&str) -> Option<String>) -> (&'static str, String) {
    let (name, separator) = match variable("CARGO_ENCODED_RUSTFLAGS") {
        Some(_) => ("CARGO_ENCODED_RUSTFLAGS", "\x1f"),
        None => ("RUSTFLAGS", " "),
    };
    let mut flags: Vec<String> = variable(name)
        .filter(|set| !set.is_empty())
        .into_iter()
        .collect();
    flags.extend(FLAGS.map(Into::into));
    (name, flags.join(separator))
}

#[test]
fn flags_that_are_set_are_kept() {
    let with = |set: &'static str, value: &'static str| {
        flags(move |name| (name == set).then(|| value.to_owned()))
    };
    assert_eq!(
        with("PATH", "/bin"),
        ("RUSTFLAGS", "--cfg clause_switches".to_owned())
    );
    assert_eq!(
        with("RUSTFLAGS", "-C debuginfo=0"),
        (
            "RUSTFLAGS",
            "-C debuginfo=0 --cfg clause_switches".to_owned()
        )
    );
    assert_eq!(
        with("CARGO_ENCODED_RUSTFLAGS", "-C\x1fdebuginfo=0"),
        (
            "CARGO_ENCODED_RUSTFLAGS",
            "-C\x1fdebuginfo=0\x1f--cfg\x1fclause_switches".to_owned()
        )
    );
}

/// Cargo unifies features: one dependent that asks for a feature sets it for all.
#[test]
fn no_feature_of_a_package_switches_clauses_off() {
    let output = cargo()
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo starts");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let features = |package: &str| -> Vec<&String> {
        let found = packages.iter().find(|found| found["name"] == package);
        let found = found.unwrap_or_else(|| panic!("{package} is in the workspace"));
        let features = found["features"].as_object().expect("a map of features");
        features.keys().collect()
    };
    for package in ["host-migrator", "lacuna"] {
        assert!(
            features(package).is_empty(),
            "{package} has features: {:?}",
            features(package)
        );
    }
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        let of_clauses = |feature: &&String| feature.contains("clause");
        assert_eq!(features(name).into_iter().find(of_clauses), None, "{name}");
    }
}
