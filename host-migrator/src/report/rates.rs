// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast each channel moves.

use std::time::{Duration, Instant};

/// The shortest time that a rate is measured over. A shorter one would show single sections.
const SPAN: Duration = Duration::from_millis(500);

/// Measures the rate of each channel over the last half second or more.
#[derive(Debug)]
pub(crate) struct ChannelRates {
    since: Instant,
    bytes: Vec<u64>,
    mbps: Vec<f64>,
}

impl ChannelRates {
    /// Of channels that have sent nothing yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: Vec::new(),
            mbps: Vec::new(),
        }
    }

    /// Takes the bytes that each channel has sent until `now`. Returns their rates in megabits a second; none until they were
    /// measured.
    pub(crate) fn update(&mut self, now: Instant, bytes: &[u64]) -> &[f64] {
        let span = now.saturating_duration_since(self.since);
        if span >= SPAN {
            self.bytes.resize(bytes.len(), 0);
            let sent = bytes.iter().zip(&self.bytes);
            let megabits = sent.map(|(now, before)| (now - before) as f64 * 8.0 / 1e6);
            self.mbps.clear();
            (self.mbps).extend(megabits.map(|megabits| megabits / span.as_secs_f64()));
            self.bytes.copy_from_slice(bytes);
            self.since = now;
        }
        &self.mbps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_span_and_stays_until_the_next_is_measured() {
        let began = Instant::now();
        let mut rates = ChannelRates::new(began);
        let mut at = |ms, bytes: &[u64]| {
            rates
                .update(began + Duration::from_millis(ms), bytes)
                .to_vec()
        };
        assert!(at(499, &[1_000_000, 0]).is_empty());
        assert_eq!(at(1000, &[1_000_000, 0]), [8.0, 0.0]);
        assert_eq!(at(1499, &[9_000_000, 0]), [8.0, 0.0]);
        assert_eq!(at(1500, &[1_000_000, 500_000]), [0.0, 8.0]);
    }
}
