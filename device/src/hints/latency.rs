// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long hints take.
//!
//! Two times are recorded since the device's start: the *age* of each hint of the guest's driver, which is the time
//! from the opening of the epoch until the hint is in the map; and the time of each *batch*, which is all that one look
//! at the hint queue finds. The clock is read twice for a batch, not for every hint.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Longer times count as this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Significant digits that are kept of a time.
const DIGITS: u8 = 2;

/// Histograms of both times.
#[derive(Debug)]
pub struct HintLatency {
    opened: Option<Instant>,
    ages: Times,
    batches: Times,
}

impl Default for HintLatency {
    fn default() -> Self {
        Self {
            opened: None,
            ages: Times::new(),
            batches: Times::new(),
        }
    }
}

impl HintLatency {
    /// An epoch has been opened.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.opened = Some(now);
    }

    /// A batch of `hints` hints was taken between `begin` and `end`.
    pub(crate) fn batch(&mut self, begin: Instant, end: Instant, hints: u64) {
        if hints == 0 {
            return;
        }
        self.batches.record(end.duration_since(begin), 1);
        if let Some(opened) = self.opened {
            self.ages.record(end.duration_since(opened), hints);
        }
    }

    /// The ages of the hints.
    pub fn ages(&self) -> &Times {
        &self.ages
    }

    /// The times of the batches.
    pub fn batches(&self) -> &Times {
        &self.batches
    }
}

/// Times, as a histogram of nanoseconds.
#[derive(Debug)]
pub struct Times(Histogram<u64>);

impl Times {
    fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, nanoseconds(LONGEST), DIGITS);
        Self(histogram.expect("an hour in nanoseconds has two digits"))
    }

    fn record(&mut self, time: Duration, count: u64) {
        self.0.saturating_record_n(nanoseconds(time), count);
    }

    /// How many times were recorded.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that the part `quantile` (0 to 1) of all times does not exceed; 0 without times.
    pub fn quantile(&self, quantile: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(quantile))
    }

    /// The longest time.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_counts_with_its_age_and_a_batch_with_its_length() {
        let mut latency = HintLatency::default();
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        latency.batch(start, after(1), 5);
        assert_eq!(latency.ages().count(), 0, "no epoch was open");
        latency.opened(start);
        latency.batch(after(2), after(2), 0);
        latency.batch(after(8), after(10), 99);
        latency.batch(after(990), after(1000), 1);
        assert_eq!(
            (latency.ages().count(), latency.batches().count()),
            (100, 3)
        );
        let near = |time: Duration, milliseconds: u64| {
            time.as_millis().abs_diff(milliseconds.into()) * 50 <= milliseconds.into()
        };
        assert!(near(latency.ages().quantile(0.5), 10));
        assert!(near(latency.ages().longest(), 1000));
        assert!(near(latency.batches().quantile(0.5), 2));
        latency.batch(start, start + 2 * LONGEST, 1);
        assert!(near(latency.ages().longest(), 3_600_000));
    }
}
