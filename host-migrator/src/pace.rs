// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Work that is not to be faster than so many bytes a second.

use std::time::{Duration, Instant};

/// Keeps to a pace.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When what was done so far is due.
    due: Option<Instant>,
    /// At most this much unused time is made up for, so that no burst follows a pause.
    credit: Duration,
}

impl Pace {
    /// A pace that makes up for at most `credit` of unused time.
    pub(crate) fn new(credit: Duration) -> Self {
        Self { due: None, credit }
    }

    /// `bytes` were done by `now`, and `bytes_per_second`, which is above 0, are allowed. Returns how long to wait.
    pub(crate) fn after(&mut self, now: Instant, bytes: u64, bytes_per_second: f64) -> Duration {
        let oldest = now.checked_sub(self.credit).unwrap_or(now);
        let from = self.due.unwrap_or(now).max(oldest);
        let due = from + Duration::from_secs_f64(bytes as f64 / bytes_per_second);
        self.due = Some(due);
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_makes_no_burst() {
        let mut pace = Pace::new(Duration::from_millis(20));
        let first = pace.after(Instant::now(), 1_000_000, 1e6);
        assert!(first > Duration::from_millis(900), "{first:?}");
        pace.due = Instant::now().checked_sub(Duration::from_millis(500));
        let later = pace.after(Instant::now(), 1_000_000, 1e6);
        assert!(later > Duration::from_millis(900), "{later:?}");
    }
}
