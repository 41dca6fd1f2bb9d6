// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rules that are compared: ours, and those of others, restated from their descriptions.

use std::time::Duration;

use host_migrator::convergence::controller::{Controller, Decision, Goals, View};
use host_migrator::convergence::downtime::Downtime;
use host_migrator::convergence::throttle::{AutoConverge, Sample, ThrottleParams};
use spec::PAGE_SIZE;

use crate::simulation::{Act, Rule, Seen};

/// QEMU's: auto-converge with a harvest every five seconds, and a stop as soon as the rest fits the downtime limit.
pub struct Qemu {
    policy: AutoConverge,
    limit: f64,
}

impl Qemu {
    pub fn new(params: Option<ThrottleParams>, limit: f64) -> Self {
        let policy = AutoConverge::new(params);
        Self { policy, limit }
    }
}

impl Rule for Qemu {
    fn at_harvest(&mut self, seen: &Seen) -> Act {
        if seen.downtime <= self.limit {
            return Act::Stop;
        }
        let before = self.policy.percent();
        let percent = self.policy.observe(Sample {
            dirty_bytes: seen.dirty * PAGE_SIZE,
            sent_bytes: seen.sent * PAGE_SIZE,
            period: Duration::from_secs_f64(seen.period),
        });
        match percent == before {
            true => Act::GoOn,
            false => Act::Throttle(percent),
        }
    }

    fn harvests_after(&self) -> Option<f64> {
        self.policy.can_rise().then_some(5.0)
    }
}

/// KubeVirt's proposal of 2026: if what remains has had no new minimum for a while, a longer downtime is allowed, and the guest is
/// stopped when what remains is near its minimum. It does not throttle.
pub struct KubeVirt {
    limit: f64,
    most_downtime: f64,
    least: f64,
    least_at: f64,
}

impl KubeVirt {
    /// Seconds without a new minimum.
    const STALLED: f64 = 30.0;

    pub fn new(limit: f64, most_downtime: f64) -> Self {
        Self {
            limit,
            most_downtime,
            least: f64::MAX,
            least_at: 0.0,
        }
    }
}

impl Rule for KubeVirt {
    fn at_harvest(&mut self, seen: &Seen) -> Act {
        let pending = seen.pending as f64;
        if pending < 0.9 * self.least {
            (self.least, self.least_at) = (pending, seen.now);
        }
        let stalled = seen.now - self.least_at >= Self::STALLED;
        let near_least = pending <= 1.1 * self.least;
        let stops = seen.downtime <= self.limit
            || (stalled && near_least && seen.downtime <= self.most_downtime);
        if stops { Act::Stop } else { Act::GoOn }
    }

    fn harvests_after(&self) -> Option<f64> {
        None
    }
}

/// Ours.
pub struct Ours {
    pub controller: Controller,
    /// The guest was handed over before its memory.
    pub handed_over: bool,
}

impl Ours {
    pub fn new(goals: Goals) -> Self {
        Self::of(Controller::new(goals))
    }

    pub fn of(controller: Controller) -> Self {
        Self {
            controller,
            handed_over: false,
        }
    }
}

impl Rule for Ours {
    fn at_harvest(&mut self, seen: &Seen) -> Act {
        let decision = self.controller.decide(View {
            now: Duration::from_secs_f64(seen.now),
            pending: seen.pending,
            dirty: seen.dirty,
            sent: seen.sent,
            period: Duration::from_secs_f64(seen.period),
            downtime: Some(Downtime {
                memory: Duration::from_secs_f64(seen.downtime),
                rest: Duration::ZERO,
            }),
        });
        match decision {
            Decision::SwitchOver => Act::Stop,
            Decision::HandOver => {
                self.handed_over = true;
                Act::Stop
            }
            Decision::Throttle(percent) => Act::Throttle(percent),
            Decision::GoOn | Decision::Allow(_) => Act::GoOn,
        }
    }

    fn harvests_after(&self) -> Option<f64> {
        Some(1.0)
    }
}
