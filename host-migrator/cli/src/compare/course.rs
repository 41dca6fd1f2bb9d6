// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The course of a migration: its figures again and again while it ran, and its events.

use host_migrator::{MigrationStatus, TimedEvent};
use serde::{Deserialize, Serialize};
use spec::PAGE_SIZE;

/// The most looks that are kept. Of more, every second one is forgotten, again and again.
const MOST: usize = 200;
/// The shortest time in milliseconds that a rate is measured over.
const SPAN: u64 = 50;

/// The figures are columns: the first of each is that of the first look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Milliseconds since the migration began.
    pub ms: Vec<u64>,
    /// Bytes of pages to be sent.
    pub remaining: Vec<u64>,
    /// Bytes sent.
    pub transferred: Vec<u64>,
    /// Bytes of pages a second that the guest dirtied before the last harvest.
    pub dirty_rate: Vec<u64>,
    /// How much of its vCPUs' time the guest did not get, in percent.
    pub throttle: Vec<u8>,
    /// What happened.
    #[serde(default)]
    pub events: Vec<TimedEvent>,
    /// Of how many looks one is taken.
    #[serde(skip)]
    every: usize,
    /// Looks since the last that was taken.
    #[serde(skip)]
    left_out: usize,
}

impl Course {
    /// Takes a look at the migration.
    pub fn look(&mut self, status: &MigrationStatus) {
        self.left_out += 1;
        let is_over = status.status.is_over();
        if self.left_out < self.every && !is_over {
            return;
        }
        self.left_out = 0;
        if self.ms.len() == MOST {
            self.every = 2 * self.every.max(1);
            halve(&mut self.ms);
            halve(&mut self.remaining);
            halve(&mut self.transferred);
            halve(&mut self.dirty_rate);
            halve(&mut self.throttle);
        }
        self.ms.push(status.total_time);
        // When all is done, nothing is left. The last look before may not show it.
        let remaining = if is_over { 0 } else { status.ram.remaining };
        self.remaining.push(remaining);
        self.transferred.push(status.ram.transferred);
        self.dirty_rate
            .push(status.ram.dirty_pages_rate * PAGE_SIZE);
        self.throttle.push(status.cpu_throttle_percentage);
    }

    /// Bytes a second that were sent until each look, since a look that is a fortieth of the whole time ago, and 50 ms at least: a
    /// shorter time would show single sections.
    pub fn sent_rate(&self) -> Vec<u64> {
        let whole = self.ms.last().copied().unwrap_or_default();
        let span = SPAN.max(whole / 40);
        let looks = || {
            self.ms
                .iter()
                .copied()
                .zip(self.transferred.iter().copied())
        };
        let rate = |(ms, bytes): (u64, u64)| {
            let earlier = looks().take_while(|look| look.0 + span <= ms).last();
            let (ms_before, bytes_before) = earlier.unwrap_or_default();
            let ms = ms.saturating_sub(ms_before).max(span);
            bytes.saturating_sub(bytes_before) * 1000 / ms
        };
        looks().map(rate).collect()
    }
}

/// Forgets every second value.
fn halve<T>(values: &mut Vec<T>) {
    let mut number = 0;
    values.retain(|_| {
        number += 1;
        number % 2 == 1
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_migrator::MigrationState;

    #[test]
    fn a_long_course_keeps_its_shape_and_its_end_in_bounded_room() {
        let mut course = Course::default();
        let mut status = MigrationStatus::default();
        for look in 0..100_000u64 {
            status.total_time = look;
            status.ram.transferred = look * 10;
            course.look(&status);
        }
        status.status = MigrationState::Completed;
        status.total_time = 100_000;
        course.look(&status);
        assert!((MOST / 2..=MOST).contains(&course.ms.len()));
        assert_eq!((course.ms[0], course.ms.last()), (0, Some(&100_000)));
        let steps: Vec<u64> = course.ms.windows(2).map(|two| two[1] - two[0]).collect();
        let most = steps.iter().max().unwrap();
        assert!(*most <= 100_000 / (MOST as u64 / 4), "{most}");
        let rates = course.sent_rate();
        let steady = |rate: &u64| (9_900..=10_000).contains(rate);
        assert!(rates[20..rates.len() - 1].iter().all(steady), "{rates:?}");
    }
}
