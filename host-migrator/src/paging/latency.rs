// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How long faults take.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Longer times count as this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Significant digits that are kept of a time.
const DIGITS: u8 = 2;

/// How many faults took about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Waits {
    /// They took less than so many microseconds, a power of two, and at least half as long.
    pub below_us: u64,
    /// How many they are.
    pub faults: u64,
}

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

    /// How many faults took how long, the shortest times first. Times that no fault took are left out.
    pub(super) fn waits(&self) -> Vec<Waits> {
        let mut waits: Vec<Waits> = Vec::new();
        for value in self.0.lock().iter_recorded() {
            let below_us = (value.value_iterated_to() / 1000 + 1).next_power_of_two();
            let faults = value.count_at_value();
            match waits.last_mut() {
                Some(last) if last.below_us == below_us => last.faults += faults,
                _ => waits.push(Waits { below_us, faults }),
            }
        }
        waits
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_by_powers_of_two() {
        let latency = Latency::new();
        assert!(latency.waits().is_empty());
        for us in [70, 20, 90, 100, 5000, 1] {
            latency.record(Duration::from_micros(us));
        }
        let waits = latency.waits().into_iter();
        let waits: Vec<_> = waits.map(|some| (some.below_us, some.faults)).collect();
        assert_eq!(waits, [(2, 1), (32, 1), (128, 3), (8192, 1)]);
    }
}
