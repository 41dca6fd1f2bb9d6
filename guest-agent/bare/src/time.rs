// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Time by the time stamp counter, and work paced by it.
#![allow(unsafe_code)]

use core::arch::x86_64::_rdtsc;

/// Time stamp counter ticks.
pub type Ticks = u64;

/// Ticks since some moment in the past. They may jump when the guest moves to another machine.
pub fn now() -> Ticks {
    // SAFETY: every x86-64 processor has the instruction, and the VMM leaves it to privilege level 3.
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

    /// Ticks of that many microseconds.
    pub fn micros(self, micros: u64) -> Ticks {
        self.khz.saturating_mul(micros) / 1000
    }

    /// Whole milliseconds of that many ticks.
    pub fn to_millis(self, ticks: Ticks) -> u64 {
        ticks / self.khz
    }
}

/// `amount` a second, of which `unit` make a piece of work.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// How much a second.
    pub amount: u64,
    /// How much of it a piece is.
    pub unit: u64,
}

/// Work at a steady rate: says when a piece of it is due.
#[derive(Debug)]
pub struct Pace {
    /// Ticks between two pieces of work; `None` for no work at all.
    interval: Option<Ticks>,
    /// When the last piece was due.
    last: Ticks,
    /// Lateness beyond this is forgotten, so that a vCPU that was stopped does not rush afterwards.
    patience: Ticks,
}

impl Pace {
    /// A pace of `rate`, shared by `sharers` who each keep one.
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

    /// Whether a piece of work is due; it then counts as done.
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
