// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Applies what [`convergence`](crate::convergence) decides: throttles the guest, harvests long rounds before they end, and says
//! when the guest is stopped.

use std::num::NonZeroU64;
use std::time::Duration;

use spec::trace::Event;

use super::clock::Clock;
use super::progress::Progress;
use crate::convergence::background_sync::BackgroundSync;
use crate::convergence::controller::{Controller, Decision, Goals, View};
use crate::convergence::downtime::Downtime;
use crate::convergence::throttle::{AutoConverge, MOST_PERCENT, Sample, ThrottleParams};
use crate::report::events::MigrationEvent;
use crate::report::trace::Trace;
use crate::source::params::{MigrationParams, PostcopyStart, Tuning};
use crate::vm::error::MachineError;
use crate::vm::throttle::Throttle;

/// The convergence of a migration.
pub(crate) struct Converging<'a> {
    /// None: the VMM has none, or it has failed.
    throttle: Option<&'a mut (dyn Throttle + 'static)>,
    policy: Policy,
    sync: BackgroundSync,
    clock: Clock,
    trace: &'a Trace,
    progress: &'a Progress,
    tuning: Tuning,
    /// The version of the tuning that is in use.
    tuned: u64,
    /// When the migration began, on the clock.
    began: Duration,
    /// When the last sample ended, and the bytes sent by then.
    sampled: (Duration, u64),
    most: u8,
    /// Whether the vCPUs are limited in what they dirty.
    limited: bool,
    /// Whether the controller may hand the guest over before its memory.
    may_hand_over: bool,
}

/// Who decides.
enum Policy {
    /// The operator's knobs.
    Knobs(AutoConverge),
    /// Each vCPU dirties at most so much as soon as the throttle would take its first step.
    Limit(AutoConverge, NonZeroU64),
    /// What the operator wants.
    Goals(Controller),
}

impl Policy {
    fn new(tuning: Tuning, may_hand_over: bool) -> Self {
        match (tuning.goals, tuning.vcpu_dirty_limit) {
            (Some(goals), _) if may_hand_over => {
                Self::Goals(Controller::new(goals).with_postcopy())
            }
            (Some(goals), _) => Self::Goals(Controller::new(goals)),
            (None, Some(limit)) => {
                Self::Limit(AutoConverge::new(Some(ThrottleParams::default())), limit)
            }
            (None, None) => Self::Knobs(AutoConverge::new(tuning.auto_converge)),
        }
    }
}

/// What is possible of `tuning`. Only the controller hands over, so it decides where that may be.
fn possible(tuning: Tuning, can_throttle: bool, may_hand_over: bool) -> Tuning {
    let patient = Goals {
        downtime_limit: tuning.downtime_limit,
        most_downtime: tuning.downtime_limit,
        deadline: None,
        max_guest_slowdown: 0,
    };
    let goals = tuning.goals.or(may_hand_over.then_some(patient));
    let tuning = Tuning { goals, ..tuning };
    match can_throttle {
        true => tuning,
        false => Tuning {
            auto_converge: None,
            vcpu_dirty_limit: None,
            goals: tuning.goals.map(|goals| Goals {
                max_guest_slowdown: 0,
                ..goals
            }),
            ..tuning
        },
    }
}

/// What a harvest has shown.
pub(crate) struct Harvested {
    pub(crate) dirty_pages: u64,
    /// Bytes that a page takes on its way.
    pub(crate) page_bytes: f64,
    /// Bytes sent so far.
    pub(crate) sent: u64,
    /// Pages that are to be sent now.
    pub(crate) pending: u64,
    /// The downtime that these would take; none before the link was measured.
    pub(crate) downtime: Option<Downtime>,
}

impl<'a> Converging<'a> {
    pub(crate) fn new(
        throttle: Option<&'a mut (dyn Throttle + 'static)>,
        params: &MigrationParams,
        trace: &'a Trace,
        progress: &'a Progress,
    ) -> Self {
        let tuning = params.tuning();
        let throttles = tuning.auto_converge.is_some()
            || tuning.vcpu_dirty_limit.is_some()
            || (tuning.goals).is_some_and(|goals| goals.max_guest_slowdown > 0);
        if throttle.is_none() && throttles {
            log::warn!("the guest is not throttled: its machine has no throttle");
        }
        let now = params.clock.now();
        let may_hand_over = params.postcopy == Some(PostcopyStart::WhenStalled);
        let possible = possible(tuning, throttle.is_some(), may_hand_over);
        Self {
            policy: Policy::new(possible, may_hand_over),
            sync: BackgroundSync::new(tuning.sync_interval, now),
            throttle,
            clock: params.clock.clone(),
            trace,
            progress,
            tuning,
            tuned: 0,
            began: now,
            sampled: (now, 0),
            most: 0,
            limited: false,
            may_hand_over,
        }
    }

    /// Whether round `round` is to be harvested now, before it ends. With the operator's knobs that is of no use where the throttle
    /// cannot rise.
    pub(crate) fn sync_is_due(&mut self, round: u32) -> bool {
        self.take_tuning();
        let is_due = self.sync.is_due(self.clock.now(), round);
        is_due
            && match &self.policy {
                Policy::Knobs(policy) => policy.can_rise(),
                Policy::Limit(..) => !self.limited,
                // What is left may fit the downtime for a moment, whatever else is allowed.
                Policy::Goals(_) => true,
            }
    }

    /// Decides after a harvest. Returns whether the guest is to be stopped.
    pub(crate) fn harvested(&mut self, harvest: &Harvested) -> bool {
        self.take_tuning();
        let now = self.clock.now();
        self.sync.harvested(now);
        let (before, sent_before) = std::mem::replace(&mut self.sampled, (now, harvest.sent));
        let sent = harvest.sent.saturating_sub(sent_before);
        let period = now.saturating_sub(before);
        let sample = Sample {
            dirty_bytes: (harvest.dirty_pages as f64 * harvest.page_bytes) as u64,
            sent_bytes: sent,
            period,
        };
        let limit = self.tuning.downtime_limit;
        let fits = (harvest.downtime).is_some_and(|downtime| downtime.fits(limit));
        match &mut self.policy {
            Policy::Knobs(policy) => {
                let percent = policy.observe(sample);
                self.set(percent);
                fits
            }
            Policy::Limit(policy, bytes) => {
                if !self.limited && policy.observe(sample) > 0 {
                    let bytes = *bytes;
                    self.limit(bytes);
                }
                fits
            }
            Policy::Goals(controller) => {
                let decision = controller.decide(View {
                    now: now.saturating_sub(self.began),
                    pending: harvest.pending,
                    dirty: harvest.dirty_pages,
                    sent: (sent as f64 / harvest.page_bytes) as u64,
                    period,
                    downtime: harvest.downtime,
                });
                if decision != Decision::GoOn
                    && let Some(text) = controller.decisions().last().cloned()
                {
                    (self.progress).happened(MigrationEvent::Decision { text });
                }
                if let Decision::Throttle(percent) = decision {
                    self.set(percent);
                }
                if decision == Decision::HandOver {
                    self.progress.orders().start();
                }
                decision == Decision::SwitchOver
            }
        }
    }

    /// The most that the guest was throttled, in percent.
    pub(crate) fn most(&self) -> u8 {
        self.most
    }

    /// What was decided, in words.
    pub(crate) fn decisions(&self) -> &[String] {
        match &self.policy {
            Policy::Knobs(_) | Policy::Limit(..) => &[],
            Policy::Goals(controller) => controller.decisions(),
        }
    }

    fn take_tuning(&mut self) {
        let Some(tuning) = self.progress.tuning_after(&mut self.tuned) else {
            return;
        };
        self.tuning = tuning;
        self.sync.change(tuning.sync_interval);
        let possible = possible(tuning, self.throttle.is_some(), self.may_hand_over);
        let percent = match (&mut self.policy, possible.goals) {
            (Policy::Knobs(policy), None) if possible.vcpu_dirty_limit.is_none() => {
                policy.change(possible.auto_converge)
            }
            (Policy::Limit(_, bytes), None) if possible.vcpu_dirty_limit.is_some() => {
                let wanted = possible.vcpu_dirty_limit.unwrap_or(*bytes);
                if std::mem::replace(bytes, wanted) != wanted && self.limited {
                    self.limit(wanted);
                }
                return;
            }
            (Policy::Goals(controller), Some(goals)) => {
                controller.change(goals);
                controller.throttle()
            }
            _ => {
                self.policy = Policy::new(possible, self.may_hand_over);
                0
            }
        };
        self.set(percent);
    }

    fn set(&mut self, percent: u8) {
        let Some(throttle) = &mut self.throttle else {
            return;
        };
        let is_lifted = std::mem::take(&mut self.limited);
        if percent == self.progress.throttle_percent() && !is_lifted {
            return;
        }
        self.trace.record(Event::Throttles(percent.into()));
        match throttle.set(percent) {
            Ok(()) => {
                log::debug!("the guest is throttled by {percent} %");
                self.most = self.most.max(percent);
                self.progress.update(|status| {
                    status.cpu_throttle_percentage = percent;
                    status.vcpu_dirty_limit = None;
                });
                let percentage = percent;
                (self.progress).happened(MigrationEvent::CpuThrottle { percentage });
            }
            Err(error) => self.cannot(&error),
        }
    }

    /// Lets each vCPU dirty at most so many bytes a second.
    fn limit(&mut self, bytes: NonZeroU64) {
        let Some(throttle) = &mut self.throttle else {
            return;
        };
        // It may take nearly all of a vCPU's time.
        self.trace.record(Event::Throttles(MOST_PERCENT.into()));
        match throttle.limit_dirtying(bytes) {
            Ok(()) => {
                log::info!("each vCPU dirties at most {bytes} bytes a second from now on");
                self.limited = true;
                self.progress
                    .update(|status| status.vcpu_dirty_limit = Some(bytes.get()));
                let bytes_per_second = bytes.get();
                (self.progress).happened(MigrationEvent::VcpuDirtyLimit { bytes_per_second });
            }
            Err(error) => self.cannot(&error),
        }
    }

    fn cannot(&mut self, error: &MachineError) {
        log::warn!("the guest is not throttled any further: {error}");
        self.throttle = None;
        let possible = possible(self.tuning, false, self.may_hand_over);
        self.policy = Policy::new(possible, self.may_hand_over);
    }
}
