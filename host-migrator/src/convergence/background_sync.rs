// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When a long round is harvested before it ends, so that the throttle follows the guest and not the rounds.

use std::time::Duration;

/// The default interval, QEMU's.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// Decides on background harvests. The times are those of one clock, since any moment.
#[derive(Clone, Copy, Debug)]
pub struct BackgroundSync {
    interval: Option<Duration>,
    harvested: Duration,
}

impl BackgroundSync {
    /// A harvest is due whenever `interval` has passed since the last one; none: never. The last was at `now`.
    pub fn new(interval: Option<Duration>, now: Duration) -> Self {
        Self {
            interval,
            harvested: now,
        }
    }

    /// The interval is another one from now on.
    pub fn change(&mut self, interval: Option<Duration>) {
        self.interval = interval;
    }

    /// Notes a harvest, or the beginning of a round.
    pub fn harvested(&mut self, now: Duration) {
        self.harvested = now;
    }

    /// Whether a harvest is due in round `round`. The first round sends everything anyhow, so it has none. A clock that was
    /// set back delays a harvest by one interval at most.
    pub fn is_due(&mut self, now: Duration, round: u32) -> bool {
        self.harvested = self.harvested.min(now);
        let since = now - self.harvested;
        round > 1 && self.interval.is_some_and(|interval| since >= interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_round_is_harvested_each_interval_except_the_first_round() {
        let mut sync = BackgroundSync::new(Some(5 * SECOND), 100 * SECOND);
        assert!(!sync.is_due(1000 * SECOND, 1));
        assert!(!sync.is_due(104 * SECOND, 2));
        for now in [105, 110, 120].map(|seconds| seconds * SECOND) {
            assert!(sync.is_due(now, 2));
            sync.harvested(now);
            assert!(!sync.is_due(now + 4 * SECOND, 2));
        }
    }

    #[test]
    fn without_an_interval_no_harvest_is_due() {
        let mut sync = BackgroundSync::new(None, Duration::ZERO);
        assert!(!sync.is_due(Duration::MAX, 2));
        sync.change(Some(SECOND));
        assert!(sync.is_due(SECOND, 2));
    }

    #[test]
    fn a_clock_that_was_set_back_delays_a_harvest_by_one_interval() {
        let mut sync = BackgroundSync::new(Some(5 * SECOND), 10_000 * SECOND);
        assert!(!sync.is_due(100 * SECOND, 2));
        assert!(sync.is_due(105 * SECOND, 2));
    }
}
