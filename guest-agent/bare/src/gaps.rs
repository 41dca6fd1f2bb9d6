// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The beats of a vCPU: how long it was kept from its work, and how often.
#![allow(unsafe_code)]

use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU32, Ordering};

use spec::bare::{GAPS_BYTES, GAPS_GPA};
use spec::gaps::{BEAT_MICROS, Gaps};
use spec::histogram::BINS;

use crate::time::{self, Clock, Ticks};

/// Counts the gaps between the beats of one vCPU.
#[derive(Debug)]
pub struct Beats {
    bins: &'static [AtomicU32; BINS],
    clock: Clock,
    last: Ticks,
    interval: Ticks,
}

impl Beats {
    /// The beats of `vcpu`, from now on.
    pub fn new(vcpu: u64, clock: Clock) -> Self {
        let gpa = GAPS_GPA + vcpu * GAPS_BYTES;
        Self {
            // SAFETY: the ABI reserves this place for the bins of this vCPU, memory is mapped one to one, and all access to
            // them is atomic.
            bins: unsafe { &*with_exposed_provenance(gpa as usize) },
            clock,
            last: time::now(),
            interval: clock.micros(BEAT_MICROS),
        }
    }

    /// Beats if that is due. It should be called many times in a millisecond. Returns the time.
    pub fn beat(&mut self) -> Ticks {
        let now = time::now();
        let gap = now.wrapping_sub(self.last);
        if gap >= self.interval {
            // A clock that was set back has no gap.
            if gap as i64 > 0 {
                let bin = Gaps::bin_of(self.clock.to_micros(gap));
                self.bins[bin].fetch_add(1, Ordering::Relaxed);
            }
            self.last = now;
        }
        now
    }
}
