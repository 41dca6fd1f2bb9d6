// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Says that this machine cannot run a test.

use std::fmt::Display;
use std::io::Write;
use std::thread;

/// Prints on standard error that the calling test is skipped, and why. The test harness hides the output of a test that
/// passes, but not this.
pub fn skipped(why: impl Display) {
    let test = thread::current();
    let test = test.name().unwrap_or("a test");
    // One write for the whole line, because other tests print, too. A closed standard error is no reason to fail.
    let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {why}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_test_that_passes_shows_that_it_was_skipped() {
        const AGAIN: &str = "LACUNA_TEST_SKIPS";
        if std::env::var_os(AGAIN).is_some() {
            return skipped("there is no such machine");
        }
        let test = thread::current().name().unwrap_or_default().to_owned();
        let again = Command::new(std::env::current_exe().expect("a test knows its program"))
            .args(["--exact", &test])
            .env(AGAIN, "1")
            .output()
            .expect("the test runs once more");
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "{said}");
        let expected = format!("skipped: {test}: there is no such machine");
        assert!(said.contains(&expected), "{said}");
    }
}
