// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the guest programs that `src/images.rs` embeds. They are no members of the workspace: each runs
//! on a machine of its own, with its own profile and compiler flags.

use std::env;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// Sources, from the root of the workspace, that guest programs are built from besides their own.
const SHARED_SOURCES: [&str; 2] = ["spec/src", "guest-agent/src"];

fn main() -> Result<(), Box<dyn Error>> {
    for folder in SHARED_SOURCES {
        println!("cargo:rerun-if-changed=../../{folder}");
    }
    // Static, because the guest has no libraries.
    build_guest(
        "guest-agent/init",
        "guest-init",
        &["-Ctarget-feature=+crt-static"],
        "LINUX_INIT",
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
    let status = Command::new(env::var("CARGO")?)
        .args(["build", "--release", "--quiet", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_folder)
        .current_dir(folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Lints and coverage of the workspace are not for guests.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()?;
    if !status.success() {
        return Err(format!("building {name} ended with {status}").into());
    }
    let program = target_folder.join(TARGET).join("release").join(name);
    println!("cargo:rustc-env={variable}={}", program.display());
    Ok(())
}
