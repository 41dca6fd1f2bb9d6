// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switchover: the guest is stopped, and the sink gets the remaining pages and the machine's state.

use std::time::{Duration, Instant};

use spec::trace::Event;

use super::error::MigrationError;
use super::progress::Progress;
use super::sender::{Sender, milliseconds};
use crate::ownership::OwnershipRecord;
use crate::report::stats::{DowntimeSteps, MigrationState, RoundStats};
use crate::report::trace::Trace;
use crate::rule::{Harvest, Tracker};
use crate::sink::Sink;
use crate::source::params::MigrationParams;
use crate::vm::machine::SourceMachine;

/// Parameters of the switchover.
pub(crate) struct Plan<'a> {
    pub(crate) machine: &'a mut dyn SourceMachine,
    pub(crate) ownership: &'a OwnershipRecord,
    pub(crate) trace: &'a Trace,
    pub(crate) params: &'a MigrationParams,
    pub(crate) progress: &'a Progress,
    /// The last round's number.
    pub(crate) round: u32,
    /// How long the guest may be stopped before it is handed over.
    pub(crate) time: Duration,
}

/// A guest that is stopped: what that has taken, and the last round.
pub(crate) struct Stopped {
    pub(crate) steps: DowntimeSteps,
    pub(crate) last_round: RoundStats,
    clock: Clock,
}

impl Stopped {
    /// Milliseconds since the last step.
    pub(crate) fn step(&mut self) -> f64 {
        self.clock.step()
    }
}

/// Stops the guest and sends the rest. The sink has the whole guest then. The guest is stopped afterwards, or may be after an
/// error.
pub(crate) fn stop_and_send<S: Sink>(
    plan: &mut Plan<'_>,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, S>,
) -> Result<Stopped, MigrationError> {
    let (time, round) = (plan.time, plan.round);
    let Plan {
        machine,
        trace,
        progress,
        ..
    } = plan;
    sender.out.check()?;
    tracker.before_pause();
    // One deadline for the whole switchover.
    sender.out.sink.begin_switchover(time);
    enter(progress, MigrationState::PreSwitchover);
    let mut steps = DowntimeSteps::default();
    let mut clock = Clock(Instant::now());
    machine.stop_vcpus()?;
    trace.record(Event::Paused);
    steps.stop_vcpus = clock.step();
    machine.stop_devices()?;
    trace.record(Event::DevicesStopped);
    steps.stop_devices = clock.step();
    sender.out.sink.check()?;
    tracker.last_harvest()?;
    steps.last_harvest = clock.step();

    sender.begin_round(round, tracker.bitmap().count());
    sender.walk_the_rest(&tracker.rest())?;
    sender.end_round()?;
    // Nothing writes to memory any more: the pages of the last harvest are among the pending ones.
    let last_round = sender.take_round(&mut Harvest::default());
    steps.ram = clock.step();

    enter(progress, MigrationState::Device);
    let state = machine.save()?;
    for section in state.sections() {
        sender.out.sink.state(section)?;
    }
    steps.state = clock.step();
    let totals = sender.stream_totals();
    sender.out.sink.commit(totals)?;
    sender.out.round_received()?;
    steps.commit = clock.step();
    Ok(Stopped {
        steps,
        last_round,
        clock,
    })
}

fn enter(progress: &Progress, state: MigrationState) {
    progress.update(|status| status.status = state);
}

/// Milliseconds from step to step.
struct Clock(Instant);

impl Clock {
    fn step(&mut self) -> f64 {
        let before = std::mem::replace(&mut self.0, Instant::now());
        milliseconds(self.0 - before)
    }
}
