// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits how much memory each vCPU makes dirty in a second. A vCPU that writes less, or only reads, loses no time.
//!
//! The dirty rings say how much each vCPU has dirtied. A vCPU that dirties more than the limit is held for a part of its time, as
//! [`throttle`](crate::throttle) holds all of them. A page counts once until the log has protected it again, in a harvest or after a
//! second. KVM also counts a page that a vCPU touches for the first time, even if it only reads it.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use spec::PAGE_SIZE;

use crate::dirty_ring::DirtyRings;
use crate::gate::Gate;
use crate::throttle::Slices;

/// How often a vCPU's share is decided anew: after a few of its slices.
const INTERVAL: Duration = Duration::from_millis(200);
/// The most that a vCPU is held, in percent.
const MOST_PERCENT: f64 = 99.0;
/// How much of a new finding counts, so that a burst does not stop a vCPU.
const WEIGHT: f64 = 0.5;

/// A thread that holds vCPUs which dirty too much. When it is dropped, they are no longer held.
#[derive(Debug)]
pub(crate) struct Limiter {
    ends: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    gate: Arc<Gate>,
}

impl Limiter {
    /// Lets each vCPU dirty at most `limit` bytes a second.
    pub(crate) fn start(
        gate: &Arc<Gate>,
        rings: &Arc<DirtyRings>,
        limit: NonZeroU64,
    ) -> io::Result<Self> {
        let ends = Arc::<(Mutex<bool>, Condvar)>::default();
        let (ending, rings) = (Arc::clone(&ends), Arc::clone(rings));
        let holds = Arc::clone(gate);
        let limit_vcpus = move || {
            let began = Instant::now();
            let mut vcpus: Vec<Limited> = rings.take().into_iter().map(Limited::new).collect();
            let (ends, changed) = &*ending;
            let mut ends = ends.lock();
            let mut last = began;
            while !*ends {
                if !changed.wait_for(&mut ends, INTERVAL).timed_out() {
                    continue;
                }
                let now = Instant::now();
                let period = now - std::mem::replace(&mut last, now);
                for (index, (vcpu, dirtied)) in vcpus.iter_mut().zip(rings.take()).enumerate() {
                    let percent = vcpu.decide(dirtied, period, limit);
                    holds.throttle_one(index, Slices::new(percent, began));
                }
            }
        };
        let thread = thread::Builder::new().name("dirty-limit".into());
        Ok(Self {
            ends,
            thread: Some(thread.spawn(limit_vcpus)?),
            gate: Arc::clone(gate),
        })
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        *self.ends.0.lock() = true;
        self.ends.1.notify_all();
        // A thread that panicked has printed why.
        let _ = self.thread.take().map(JoinHandle::join);
        self.gate.release_single();
    }
}

/// One vCPU.
#[derive(Debug)]
struct Limited {
    /// The pages that it had dirtied at the last look.
    dirtied: u64,
    /// For how much of its time it should be held, without jumps.
    percent: f64,
    /// For how much of its time it is held.
    held: u8,
}

impl Limited {
    fn new(dirtied: u64) -> Self {
        Self {
            dirtied,
            percent: 0.0,
            held: 0,
        }
    }

    /// The vCPU has dirtied `dirtied` pages so far. Returns for how many percent of its time it is held from now on.
    fn decide(&mut self, dirtied: u64, period: Duration, limit: NonZeroU64) -> u8 {
        let pages = dirtied - std::mem::replace(&mut self.dirtied, dirtied);
        let rate = pages as f64 * PAGE_SIZE as f64 / period.as_secs_f64().max(1e-3);
        // It dirties in proportion to its time.
        let unlimited = rate / (1.0 - f64::from(self.held) / 100.0);
        let wanted = 100.0 * (1.0 - limit.get() as f64 / unlimited.max(1.0));
        let wanted = wanted.clamp(0.0, MOST_PERCENT);
        self.percent = self.percent * (1.0 - WEIGHT) + wanted * WEIGHT;
        if self.percent < 1.0 {
            self.percent = 0.0;
        }
        // Rounded up: of a fast vCPU, a percent of its time is more than the limit.
        self.held = self.percent.ceil() as u8;
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: NonZeroU64 = NonZeroU64::new(10 << 20).unwrap();

    /// What a vCPU that would dirty `rate` bytes a second dirties in each of 50 intervals.
    fn dirties(rate: f64) -> Vec<f64> {
        let mut vcpu = Limited::new(0);
        let (mut dirtied, mut percent) = (0.0, 0);
        let mut rates = Vec::new();
        for _ in 0..50 {
            let now = rate * (1.0 - f64::from(percent) / 100.0);
            rates.push(now);
            dirtied += now * INTERVAL.as_secs_f64() / PAGE_SIZE as f64;
            percent = vcpu.decide(dirtied as u64, INTERVAL, LIMIT);
        }
        rates
    }

    #[test]
    fn a_vcpu_that_dirties_too_much_comes_to_the_limit_and_stays_there() {
        for rate in [11e6, 30e6, 200e6, 900e6] {
            let rates = dirties(rate);
            let limit = LIMIT.get() as f64;
            for rate in &rates[20..] {
                assert!((0.7 * limit..1.3 * limit).contains(rate), "{rates:?}");
            }
        }
    }

    #[test]
    fn a_vcpu_below_the_limit_is_never_held() {
        for rate in [0.0, 1e6, 10e6] {
            assert!(dirties(rate).iter().all(|now| *now == rate));
        }
    }

    #[test]
    fn a_vcpu_that_stops_writing_gets_all_of_its_time_again() {
        let mut vcpu = Limited::new(0);
        for seconds in 1..20 {
            vcpu.decide(seconds * 100_000, INTERVAL, LIMIT);
        }
        assert!(vcpu.percent > 90.0);
        let percents: Vec<u8> = (0..20)
            .map(|_| vcpu.decide(1_900_000, INTERVAL, LIMIT))
            .collect();
        assert_eq!(percents.last(), Some(&0), "{percents:?}");
    }
}
