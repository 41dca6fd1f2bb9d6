// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time from the time stamp counter, and work paced by it.
#![allow(unsafe_code)]

use core::arch::x86_64::_rdtsc;

/// Time stamp counter ticks.
pub type Ticks = u64;

/// Ticks since some moment in the past. They may jump when the guest moves to another machine.
pub fn now() -> Ticks {
    // SAFETY: every x86-64 processor has the instruction, and the VMM allows it at privilege level 3.
    unsafe { _rdtsc() }
}

/// How many ticks a millisecond has.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    khz: u64,
}

impl Clock {
    /// A clock of `tsc_khz`, at least 1.
    pub fn new(tsc_khz: u64) -> Self {
        Self {
            khz: tsc_khz.max(1),
        }
    }

    /// Converts microseconds to ticks.
    pub fn micros(self, micros: u64) -> Ticks {
        self.khz.saturating_mul(micros) / 1000
    }

    /// Converts ticks to whole microseconds.
    pub fn to_micros(self, ticks: Ticks) -> u64 {
        (u128::from(ticks) * 1000 / u128::from(self.khz)) as u64
    }

    /// Converts ticks to whole nanoseconds.
    pub fn to_nanos(self, ticks: Ticks) -> u64 {
        (u128::from(ticks) * 1_000_000 / u128::from(self.khz)) as u64
    }

    /// Converts ticks to whole milliseconds.
    pub fn to_millis(self, ticks: Ticks) -> u64 {
        ticks / self.khz
    }
}

/// A rate of `amount` a second, done in pieces of `unit`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The amount in a second.
    pub amount: u64,
    /// The amount in a piece of work.
    pub unit: u64,
}

/// Paces work at a steady rate.
#[derive(Debug)]
pub struct Pace {
    /// Ticks between two pieces of work; `None` for no work.
    interval: Option<Ticks>,
    /// When the last piece was due.
    last: Ticks,
    /// The most delay that is made up for, so that a vCPU does not rush after it was stopped.
    patience: Ticks,
}

impl Pace {
    /// The pace of one of `sharers` vCPUs that share `rate`.
    pub fn new(clock: Clock, rate: Rate, sharers: u64) -> Self {
        let second = u128::from(clock.micros(1_000_000));
        let ticks = (second * u128::from(rate.unit)).saturating_mul(u128::from(sharers));
        Self {
            interval: ticks
                .checked_div(u128::from(rate.amount))
                .map(|ticks| ticks.clamp(1, u128::from(u64::MAX)) as u64),
            last: now(),
            patience: clock.micros(50_000),
        }
    }

    /// Whether a piece of work is due. If so, it counts as done.
    pub fn take(&mut self) -> bool {
        let Some(interval) = self.interval else {
            return false;
        };
        let now = now();
        let late = now.wrapping_sub(self.last) as i64;
        if late < 0 || late as u64 > self.patience.saturating_add(interval) {
            self.last = now;
            return true;
        }
        let due = late as u64 >= interval;
        if due {
            self.last += interval;
        }
        due
    }
}
