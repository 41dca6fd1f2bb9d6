// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Throttles the guest as the policy in [`convergence`](crate::convergence) says, and says when a long round is harvested.

use std::time::Duration;

use spec::trace::Event;

use super::clock::Clock;
use super::progress::Progress;
use crate::convergence::background_sync::BackgroundSync;
use crate::convergence::throttle::{AutoConverge, Sample};
use crate::report::trace::Trace;
use crate::source::params::MigrationParams;
use crate::vm::throttle::Throttle;

/// The throttle of a migration.
pub(crate) struct Converging<'a> {
    /// None: the VMM has none, or it has failed.
    throttle: Option<&'a mut (dyn Throttle + 'static)>,
    policy: AutoConverge,
    sync: BackgroundSync,
    clock: Clock,
    trace: &'a Trace,
    progress: &'a Progress,
    /// The version of the tuning that is in use.
    tuned: u64,
    /// When the last sample ended, and the bytes sent by then.
    sampled: (Duration, u64),
    most: u8,
}

impl<'a> Converging<'a> {
    pub(crate) fn new(
        throttle: Option<&'a mut (dyn Throttle + 'static)>,
        params: &MigrationParams,
        trace: &'a Trace,
        progress: &'a Progress,
    ) -> Self {
        if throttle.is_none() && params.auto_converge.is_some() {
            log::warn!("the guest is not throttled: its machine has no throttle");
        }
        let now = params.clock.now();
        let on = throttle.is_some();
        Self {
            policy: AutoConverge::new(params.auto_converge.filter(|_| on)),
            sync: BackgroundSync::new(params.sync_interval, now),
            throttle,
            clock: params.clock.clone(),
            trace,
            progress,
            tuned: 0,
            sampled: (now, 0),
            most: 0,
        }
    }

    /// Whether round `round` is to be harvested now, before it ends. That is of no use unless the throttle may rise.
    pub(crate) fn sync_is_due(&mut self, round: u32) -> bool {
        if let Some(tuning) = self.progress.tuning_after(&mut self.tuned) {
            self.sync.change(tuning.sync_interval);
            let percent = match self.throttle {
                Some(_) => self.policy.change(tuning.auto_converge),
                None => 0,
            };
            self.set(percent);
        }
        self.sync.is_due(self.clock.now(), round) && self.policy.can_rise()
    }

    /// A harvest has brought `dirty_pages`, each of which takes `page_bytes` on its way, and `sent` bytes were sent by now.
    pub(crate) fn harvested(&mut self, dirty_pages: u64, page_bytes: f64, sent: u64) {
        let now = self.clock.now();
        self.sync.harvested(now);
        let (before, sent_before) = std::mem::replace(&mut self.sampled, (now, sent));
        let percent = self.policy.observe(Sample {
            dirty_bytes: (dirty_pages as f64 * page_bytes) as u64,
            sent_bytes: sent.saturating_sub(sent_before),
            period: now.saturating_sub(before),
        });
        self.set(percent);
    }

    /// The most that the guest was throttled, in percent.
    pub(crate) fn most(&self) -> u8 {
        self.most
    }

    fn set(&mut self, percent: u8) {
        let Some(throttle) = &mut self.throttle else {
            return;
        };
        let status = self.progress.throttle_percent();
        if percent == status {
            return;
        }
        self.trace.record(Event::Throttles(percent.into()));
        match throttle.set(percent) {
            Ok(()) => {
                log::debug!("the guest is throttled by {percent} %");
                self.most = self.most.max(percent);
                self.progress
                    .update(|status| status.cpu_throttle_percentage = percent);
            }
            Err(error) => {
                log::warn!("the guest is not throttled any further: {error}");
                self.throttle = None;
                self.policy.change(None);
            }
        }
    }
}
