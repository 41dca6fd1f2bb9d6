// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for another process or thread without guessing how long it takes.

use std::thread;
use std::time::{Duration, Instant};

/// The time limit of a wait that does not involve a guest's kernel. Reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The longest pause between two attempts. Other processes need the processor, too.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// Calls `attempt` until it returns a value.
///
/// # Panics
/// If it returns none within [`PATIENCE`]. The message names `what` was waited for.
pub fn eventually<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, attempt)
}

/// As [`eventually`], with another time limit.
///
/// # Panics
/// If `attempt` returns no value within `patience`. The message names `what` was waited for.
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

    #[test]
    fn a_late_value_is_returned() {
        let mut attempts = 0..3;
        let found = eventually("an end", || attempts.next().is_none().then_some("it"));
        assert_eq!(found, "it");
    }

    #[test]
    #[should_panic(expected = "never came: a miracle")]
    fn a_value_that_never_comes_is_a_failure_that_names_it() {
        within(Duration::ZERO, "a miracle", || None::<()>)
    }
}
