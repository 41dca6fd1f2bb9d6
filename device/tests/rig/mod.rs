// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest, a front end and a migrator around a real daemon process.
#![allow(dead_code, reason = "every test file uses its own part of the rig")]

pub mod agent;
pub mod ballooning;
pub mod guest;
pub mod migrator;
pub mod person;
pub mod queue;

use std::time::{Duration, Instant};

/// The end of every wait in these tests. Reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Tries until `attempt` gives something.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < end, "never came: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
