// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Estimates the downtime from what the migration has measured so far.
//!
//! The downtime has the parts of [`DowntimeSteps`](crate::report::stats::DowntimeSteps). Those that depend on memory are measured
//! in every round: the harvest, the look at a page (copy and zero test), the way of its bytes, and the way of an answer.
//! Those that do not, stopping, state and load, are what the caller has learnt before.

use std::time::Duration;

use super::pacing::Pacing;
use crate::convergence::downtime::Downtime;
use crate::report::stats::ExpectedSteps;

/// The look at a page forgets half of what it knows whenever it has seen this many pages more.
const MEMORY: f64 = 65536.0;

/// What the parts of a downtime have taken so far.
#[derive(Debug)]
pub(crate) struct Estimate {
    /// Stopping the machine, its state and its load.
    besides_memory: Duration,
    harvest: Duration,
    /// From a question to its answer when nothing else is on the way.
    round_trip: Duration,
    pages: f64,
    seconds: f64,
}

impl Estimate {
    pub(crate) fn new(besides_memory: Duration, round_trip: Duration) -> Self {
        Self {
            besides_memory,
            harvest: Duration::ZERO,
            round_trip,
            pages: 0.0,
            seconds: 0.0,
        }
    }

    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Notes how long an answer took that something else may have been before.
    pub(crate) fn answered(&mut self, took: Duration) {
        self.round_trip = self.round_trip.min(took);
    }

    /// Notes that a harvest took so long.
    pub(crate) fn harvested(&mut self, took: Duration) {
        self.harvest = took;
    }

    /// Notes that to find, copy and look at `pages` took so long, without what it took to send them.
    pub(crate) fn looked_at(&mut self, pages: u64, took: Duration) {
        self.pages += pages as f64;
        self.seconds += took.as_secs_f64();
        if self.pages > 2.0 * MEMORY {
            self.pages /= 2.0;
            self.seconds /= 2.0;
        }
    }

    /// How long the guest would be stopped with `pages` to be sent over so many `channels`; none before the channel was measured.
    pub(crate) fn downtime(&self, pages: u64, pacing: &Pacing, channels: u32) -> Option<Downtime> {
        let parts = self.parts(pages, pacing)?;
        let memory = match channels {
            // One thread looks at pages and sends them.
            0 | 1 => parts.look + parts.way,
            // The channels send what was looked at while more is looked at.
            _ => parts.look.max(parts.way),
        };
        Some(Downtime {
            memory: Duration::try_from_secs_f64(memory).unwrap_or(Duration::MAX),
            rest: self.besides_memory + self.harvest + parts.answers,
        })
    }

    /// The parts of that downtime.
    pub(crate) fn steps(&self, pages: u64, pacing: &Pacing) -> Option<ExpectedSteps> {
        let parts = self.parts(pages, pacing)?;
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        Some(ExpectedSteps {
            machine: ms(self.besides_memory),
            harvest: ms(self.harvest),
            answers: ms(parts.answers),
            look: parts.look * 1000.0,
            way: parts.way * 1000.0,
        })
    }

    fn parts(&self, pages: u64, pacing: &Pacing) -> Option<Parts> {
        let bytes = pages as f64 * pacing.page_bytes();
        Some(Parts {
            look: self.seconds / self.pages.max(1.0) * pages as f64,
            way: bytes / pacing.unlimited()?,
            // To the commit and to the hand-over.
            answers: 2 * self.round_trip,
        })
    }
}

/// The parts of a downtime that depend on the connection. `look` and `way` are seconds.
struct Parts {
    look: f64,
    way: f64,
    answers: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn all_parts_of_the_downtime_are_expected() {
        let mut pacing = Pacing::new(None);
        let mut estimate = Estimate::new(20 * MS, 5 * MS);
        assert_eq!(
            estimate.downtime(1, &pacing, 1),
            None,
            "nothing was measured"
        );
        // 4 KiB a microsecond and 3 microseconds a look.
        pacing.sent(4096 * 10_000, 10 * MS);
        estimate.looked_at(10_000, 30 * MS);
        estimate.harvested(7 * MS);
        estimate.answered(6 * MS);
        let expected = estimate.downtime(1000, &pacing, 1).unwrap();
        assert_eq!(expected.memory.as_micros(), 4000);
        let overlapping = estimate.downtime(1000, &pacing, 2).unwrap();
        assert_eq!(overlapping.memory.as_micros(), 3000);
        assert_eq!(expected.rest, 37 * MS);
        let steps = estimate.steps(1000, &pacing).unwrap();
        assert_eq!(
            (steps.machine, steps.harvest, steps.answers),
            (20.0, 7.0, 10.0)
        );
        assert_eq!((steps.look.round(), steps.way.round()), (3.0, 1.0));
        assert!(expected.fits(41 * MS) && !expected.fits(40 * MS));
        assert!(expected.fits(4 * MS + MS / 100), "only memory can be less");
        assert!(!expected.fits(3 * MS));
    }

    #[test]
    fn a_bandwidth_limit_is_not_one_for_the_stopped_guest() {
        let mut pacing = Pacing::new(Some(1 << 20));
        let mut estimate = Estimate::new(Duration::ZERO, MS);
        estimate.looked_at(1, Duration::ZERO);
        // What a socket buffer takes at once says nothing of the channel behind.
        pacing.sent(64 << 20, MS);
        assert_eq!(estimate.downtime(1000, &pacing, 1), None);
        pacing.tried(100 << 10, MS);
        let expected = estimate.downtime(1000, &pacing, 1).unwrap().memory;
        assert_eq!(expected.as_millis(), 40);
    }
}
