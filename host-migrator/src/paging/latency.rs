// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long faults take.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Longer times count as this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Significant digits that are kept of a time.
const DIGITS: u8 = 2;

/// The times from the moment when a fault was read to its answer.
#[derive(Debug)]
pub(super) struct Latency(Mutex<Histogram<u64>>);

impl Latency {
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, nanoseconds(LONGEST), DIGITS);
        Self(Mutex::new(
            histogram.expect("an hour in nanoseconds has two digits"),
        ))
    }

    pub(super) fn record(&self, time: Duration) {
        self.0.lock().saturating_record(nanoseconds(time));
    }

    /// Microseconds that `share` of the faults, of 1, did not exceed; `None` before the first.
    pub(super) fn quantile_us(&self, share: f64) -> Option<f64> {
        let histogram = self.0.lock();
        (!histogram.is_empty()).then(|| histogram.value_at_quantile(share) as f64 / 1000.0)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
