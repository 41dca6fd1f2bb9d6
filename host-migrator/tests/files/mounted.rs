// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file system of a test's own, in a mount namespace that only a copy of the test sees.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The folder of the file system, for the copy of the test.
const FOLDER: &str = "LACUNA_TEST_FOLDER";

/// The folder of a file system that `mount ARGUMENTS FOLDER` makes. `None` in the test that was started first: it has run a copy of
/// itself, whose name is `test`, with the folder.
pub fn folder(test: &str, arguments: &str) -> Option<PathBuf> {
    if let Some(folder) = env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let script = format!("mount {arguments} \"$0\" || exit 99; exec \"$@\"");
    let ran = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .arg(folder.path())
        .arg(env::current_exe().unwrap())
        .args(["--exact", test])
        .env(FOLDER, folder.path())
        .output();
    match ran {
        Ok(ran) if ran.status.code() == Some(99) || ran.stdout.is_empty() => {
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            spec_testing::skipped(format_args!("nothing can be mounted here: {said}"));
        }
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stdout).into_owned();
            assert!(ran.status.success() && said.contains("1 passed"), "{said}");
        }
        Err(error) => spec_testing::skipped(format_args!("unshare: {error}")),
    }
    None
}
