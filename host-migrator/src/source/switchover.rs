// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switchover: the guest is stopped, and the sink gets the remaining pages and the machine's state.

use std::time::{Duration, Instant};

use spec::stream::Totals;
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
    /// How long the guest may be stopped before it is handed over.
    pub(crate) time: Duration,
}

/// A guest that is stopped, and what that has taken.
pub(crate) struct Stopped {
    pub(crate) steps: DowntimeSteps,
    clock: Clock,
}

impl Stopped {
    /// Milliseconds since the last step.
    pub(crate) fn step(&mut self) -> f64 {
        self.clock.step()
    }
}

/// Stops the guest and sends the rest, as round `round`. The sink has the whole guest then. The guest is stopped afterwards,
/// or may be after an error.
pub(crate) fn stop_and_send<S: Sink>(
    plan: &mut Plan<'_>,
    round: u32,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, S>,
) -> Result<(Stopped, RoundStats), MigrationError> {
    sender.out.check()?;
    tracker.before_pause();
    let mut stopped = stop(plan, sender.out.sink)?;
    tracker.last_harvest()?;
    stopped.steps.last_harvest = stopped.step();

    sender.begin_round(round, tracker.bitmap().count());
    sender.walk_the_rest(&tracker.rest())?;
    sender.end_round()?;
    // Nothing writes to memory any more: the pages of the last harvest are among the pending ones.
    let last_round = sender.take_round(&mut Harvest::default());
    stopped.steps.ram = stopped.step();

    let totals = sender.stream_totals();
    send_state(plan, sender.out.sink, totals, &mut stopped)?;
    sender.out.round_received()?;
    stopped.steps.commit = stopped.step();
    Ok((stopped, last_round))
}

/// Stops the guest and its devices. Nothing writes to its memory afterwards.
pub(crate) fn stop<S: Sink>(plan: &mut Plan<'_>, sink: &mut S) -> Result<Stopped, MigrationError> {
    // One deadline for the whole switchover.
    sink.begin_switchover(plan.time);
    enter(plan.progress, MigrationState::PreSwitchover);
    let mut steps = DowntimeSteps::default();
    let mut clock = Clock(Instant::now());
    plan.machine.stop_vcpus()?;
    plan.trace.record(Event::Paused);
    steps.stop_vcpus = clock.step();
    plan.machine.stop_devices()?;
    plan.trace.record(Event::DevicesStopped);
    steps.stop_devices = clock.step();
    sink.check()?;
    Ok(Stopped { steps, clock })
}

/// Sends the machine's state, and the totals of what was sent.
pub(crate) fn send_state<S: Sink>(
    plan: &mut Plan<'_>,
    sink: &mut S,
    totals: Totals,
    stopped: &mut Stopped,
) -> Result<(), MigrationError> {
    enter(plan.progress, MigrationState::Device);
    let state = plan.machine.save()?;
    for section in state.sections() {
        sink.state(section)?;
    }
    stopped.steps.state = stopped.step();
    Ok(sink.commit(totals)?)
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
