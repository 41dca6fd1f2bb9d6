// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the guest programs that `src/images.rs` embeds. Each runs on a machine of its own, with compiler flags
//! of its own; all but the agent are no members of the workspace and have a profile of their own, too.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// Sources, from the root of the workspace, that guest programs are built from besides their own.
const SHARED_SOURCES: [&str; 6] = [
    "Cargo.toml",
    "Cargo.lock",
    "spec/Cargo.toml",
    "spec/src",
    "guest-agent/Cargo.toml",
    "guest-agent/src",
];

fn main() -> Result<(), Box<dyn Error>> {
    for source in SHARED_SOURCES {
        println!("cargo:rerun-if-changed=../../{source}");
    }
    // Static, because the guest has no libraries.
    build_guest(
        "guest-agent/init",
        "guest-init",
        &["-Ctarget-feature=+crt-static"],
        "LINUX_INIT",
    )?;
    build_guest(
        "guest-agent/linux",
        "lacuna-agent",
        &["-Ctarget-feature=+crt-static", "-Cstrip=symbols"],
        "LINUX_AGENT",
    )?;
    // At a fixed address: nothing in the guest could relocate it.
    build_guest(
        "guest-agent/bare",
        "bare-guest",
        &["-Crelocation-model=static"],
        "BARE_GUEST",
    )
}

/// Builds the program `name` in `folder`, with `flags` for the compiler, and puts its path into the
/// environment variable `variable` of this crate's build.
fn build_guest(
    folder: &str,
    name: &str,
    flags: &[&str],
    variable: &str,
) -> Result<(), Box<dyn Error>> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";

    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?)
        .join("../..")
        .join(folder);
    println!("cargo:rerun-if-changed={}", folder.display());
    let target_folder = Path::new(&env::var("OUT_DIR")?).join("guests").join(name);
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo
        .args(["build", "--release", "--quiet", "--locked"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(&target_folder)
        .current_dir(folder);
    forget_the_outer_build(&mut cargo);
    // This also overrides the flags of configuration files.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = cargo.status()?;
    if !status.success() {
        return Err(format!("building {name} ended with {status}").into());
    }
    let program = target_folder.join(TARGET).join("release").join(name);
    println!("cargo:rustc-env={variable}={}", program.display());
    Ok(())
}

/// Lints, coverage, wrappers and profiles of the workspace's build are not for guests.
fn forget_the_outer_build(cargo: &mut Command) {
    const PREFIXES: [&str; 3] = ["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_"];
    const NAMES: [&str; 2] = ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"];
    for (name, _) in env::vars_os() {
        let is_of_the_outer_build = name.to_str().is_some_and(|name| {
            NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        });
        if is_of_the_outer_build {
            cargo.env_remove(name);
        }
    }
}
