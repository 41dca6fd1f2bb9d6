// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of several crates share: waiting for another process or thread without guessing how long it takes,
//! and a word about tests that cannot run.
//!
//! It lies below all crates, beside the types that they agree on, because all of them may depend on it there.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

/// The end of a wait that no guest's kernel takes part in. Reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The longest pause between two attempts: others need the processor, too.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// What `read` finds of another process in `/proc`. Where only root may look, as into a process that cannot be dumped, this says
/// that a part of the calling test is skipped, and gives nothing: the same each time.
///
/// # Panics
/// For any other error.
pub fn seen_of_process<T: Default>(read: impl FnOnce() -> std::io::Result<T>) -> T {
    match read() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            skipped("what the process has open can only be seen by root");
            T::default()
        }
        seen => seen.expect("the process is there"),
    }
}

/// Says on standard error that the calling test is skipped, and why. The test harness hides what a test that passes
/// prints; it does not hide this.
pub fn skipped(why: impl Display) {
    let test = thread::current();
    let test = test.name().unwrap_or("a test");
    // One line in one write: other tests say something, too. A closed standard error is no reason to fail.
    let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {why}\n").as_bytes());
}

/// Tries until `attempt` gives something.
///
/// # Panics
/// If it gives nothing within [`PATIENCE`]; says `what` was waited for.
pub fn eventually<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, attempt)
}

/// As [`eventually`], for what may take as long as `patience`.
///
/// # Panics
/// If `attempt` gives nothing within `patience`; says `what` was waited for.
pub fn within<T>(patience: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "never came: {what}");
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(2 * pause);
    }
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

    #[test]
    fn what_comes_late_is_returned() {
        let mut attempts = 0..3;
        let found = eventually("an end", || attempts.next().is_none().then_some("it"));
        assert_eq!(found, "it");
    }

    #[test]
    #[should_panic(expected = "never came: a miracle")]
    fn what_never_comes_is_a_failure_that_says_so() {
        within(Duration::ZERO, "a miracle", || None::<()>)
    }
}
