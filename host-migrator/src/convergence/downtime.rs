// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A downtime that is expected, and whether that is short enough.

use std::time::Duration;

/// A downtime that is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downtime {
    /// What another round can make shorter.
    pub memory: Duration,
    /// What it cannot.
    pub rest: Duration,
}

impl Downtime {
    /// The whole downtime.
    pub fn sum(self) -> Duration {
        self.memory.saturating_add(self.rest)
    }

    /// Whether the guest may be stopped. A limit that is too short even without memory is one for memory: rounds
    /// without end would not help.
    pub fn fits(self, limit: Duration) -> bool {
        self.sum() <= limit || (self.rest >= limit && self.memory <= limit)
    }
}
