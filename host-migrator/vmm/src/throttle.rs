// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Slows a guest down: its vCPUs run for a part of each slice of time, and are held for the rest.
//!
//! The slices are fixed in time, and the same for all vCPUs. A vCPU that leaves the guest asks whether it is held now, and
//! until when; a thread makes the vCPUs leave the guest when a hold begins. So a vCPU that is late makes its own hold shorter,
//! and no delay adds up.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use host_migrator::{MachineError, Throttle};

use crate::dirty_limit::Limiter;
use crate::dirty_ring::DirtyRings;
use crate::gate::Gate;

/// The shortest time that a vCPU runs in a slice. It should be long against a switch of the host's scheduler.
const SHORTEST_RUN: Duration = Duration::from_millis(1);
/// The shortest slice.
const SHORTEST_SLICE: Duration = Duration::from_millis(10);
/// The most that a vCPU is held, in percent.
const MOST_PERCENT: u8 = 99;

/// Throttles the vCPUs of a machine. If it is dropped, they run at full speed.
#[derive(Debug)]
pub struct VcpuThrottle {
    gate: Arc<Gate>,
    /// They say which vCPU has dirtied how much.
    rings: Option<Arc<DirtyRings>>,
    limiter: Option<Limiter>,
}

impl VcpuThrottle {
    pub(crate) fn new(gate: Arc<Gate>, rings: Option<Arc<DirtyRings>>) -> Self {
        Self {
            gate,
            rings,
            limiter: None,
        }
    }
}

impl Throttle for VcpuThrottle {
    fn set(&mut self, percent: u8) -> Result<(), MachineError> {
        if percent == 0 {
            self.limiter = None;
        }
        self.gate.throttle(Slices::new(percent, Instant::now()));
        Ok(())
    }

    fn limit_dirtying(&mut self, bytes_a_second: NonZeroU64) -> Result<(), MachineError> {
        let failed = |reason: String| MachineError {
            action: "limit how much each vCPU dirties",
            reason,
        };
        let Some(rings) = &self.rings else {
            let why =
                "its dirty log is a bitmap, which does not say who wrote (--dirty-log ring does)";
            return Err(failed(why.into()));
        };
        // The old one must not hold a vCPU after this one has let it go.
        self.limiter = None;
        let limiter = Limiter::start(&self.gate, rings, bytes_a_second);
        self.limiter = Some(limiter.map_err(|error| failed(error.to_string()))?);
        Ok(())
    }
}

impl Drop for VcpuThrottle {
    fn drop(&mut self) {
        self.limiter = None;
        self.gate.throttle(None);
    }
}

/// Slices of time, one after the other. In each the vCPUs first run, and then are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slices {
    start: Instant,
    length: Duration,
    run: Duration,
}

impl Slices {
    /// Slices from `start` on, in which vCPUs are held for `percent` of the time. None: they are never held.
    pub(crate) fn new(percent: u8, start: Instant) -> Option<Self> {
        let run_percent = u32::from(100 - percent.min(MOST_PERCENT));
        let length = SHORTEST_SLICE.max(SHORTEST_RUN * 100 / run_percent);
        (percent > 0).then(|| Self {
            start,
            length,
            run: SHORTEST_RUN.max(length * run_percent / 100),
        })
    }

    /// The vCPUs are held from `start` on for as long as a test may last.
    #[cfg(test)]
    pub(crate) fn hold_from(start: Instant) -> Self {
        Self {
            start,
            length: Duration::from_secs(3600),
            run: Duration::ZERO,
        }
    }

    /// Of these and `other`, those in which a vCPU gets less time.
    pub(crate) fn longer_held(self, other: Self) -> Self {
        let share = |slices: &Self| slices.run.as_secs_f64() / slices.length.as_secs_f64();
        match share(&self) <= share(&other) {
            true => self,
            false => other,
        }
    }

    /// Until when a vCPU is held at `now`; none: it may run.
    pub(crate) fn held_until(&self, now: Instant) -> Option<Instant> {
        let at = self.at(now);
        (at >= self.run).then(|| now + (self.length - at))
    }

    /// When the next hold begins after `now`.
    pub(crate) fn next_hold(&self, now: Instant) -> Instant {
        let at = self.at(now);
        let wait = match at < self.run {
            true => self.run - at,
            false => self.length - at + self.run,
        };
        now + wait
    }

    /// The time since the slice at `now` began.
    fn at(&self, now: Instant) -> Duration {
        let since = now.saturating_duration_since(self.start).as_nanos();
        // A slice is shorter than 2^64 ns.
        Duration::from_nanos((since % self.length.as_nanos()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spec::stamp::Random;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// The time that a vCPU runs in `time`. It begins to run `wakes` too late after each hold, and leaves the guest `leaves` too
    /// late.
    fn runs(
        slices: &Slices,
        time: Duration,
        mut wakes: impl FnMut() -> Duration,
        mut leaves: impl FnMut() -> Duration,
    ) -> Duration {
        let (mut now, mut ran) = (slices.start, Duration::ZERO);
        while now < slices.start + time {
            if let Some(end) = slices.held_until(now) {
                now = end + wakes();
            } else {
                let end = slices.next_hold(now) + leaves();
                ran += end - now;
                now = end;
            }
        }
        ran
    }

    #[test]
    fn each_percentage_is_kept_and_no_delay_adds_up() {
        let start = Instant::now();
        assert_eq!(Slices::new(0, start), None);
        let time = Duration::from_secs(100);
        for percent in 1..=255u8 {
            let slices = Slices::new(percent, start).unwrap();
            let wanted = f64::from(100 - percent.min(99));
            let of = |ran: Duration| ran.as_secs_f64() / time.as_secs_f64() * 100.0;
            let none = || Duration::ZERO;
            let exact = of(runs(&slices, time, none, none));
            assert!((exact - wanted).abs() < 0.2, "{percent}: {exact}");
            // Two vCPUs with the same delays on average, in another order, get the same.
            let shares = [1, 2].map(|seed| {
                let mut random = Random::new(seed);
                let mut late = || MICROSECOND * random.below(200) as u32;
                of(runs(&slices, time, none, &mut late))
            });
            // On average 100 microseconds in each slice.
            let most = 0.0101 / slices.length.as_secs_f64();
            for share in shares {
                assert!(
                    (wanted - 0.2..wanted + most + 0.3).contains(&share),
                    "{percent}: {share}"
                );
            }
            assert!((shares[0] - shares[1]).abs() < 0.1, "{percent}: {shares:?}");
        }
    }

    #[test]
    fn a_hold_is_never_long() {
        for percent in 1..=99 {
            let slices = Slices::new(percent, Instant::now()).unwrap();
            assert!(slices.length - slices.run <= Duration::from_millis(99));
            assert!(slices.run >= SHORTEST_RUN);
        }
    }

    #[test]
    fn a_vcpu_that_is_very_late_is_in_step_at_once() {
        let start = Instant::now();
        let slices = Slices::new(50, start).unwrap();
        let late = start + Duration::from_secs(1_000_000) + Duration::from_millis(7);
        let end = start + Duration::from_secs(1_000_000) + Duration::from_millis(10);
        assert_eq!(slices.held_until(late), Some(end));
        assert_eq!(slices.held_until(end), None);
        assert_eq!(slices.next_hold(late), end + Duration::from_millis(5));
    }
}
