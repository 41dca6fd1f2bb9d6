// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switchover: the guest is stopped, the remaining pages are sent, and the destination takes the guest over.
//!
//! The hand-over has two phases, so that the guest never runs in two places. Until the first byte of
//! HandOver was sent, the guest belongs to the source; from then on to the destination.

use std::time::{Duration, Instant};

use spec::stream::SectionKind;
use spec::trace::Event;

use super::error::MigrationError;
use super::progress::Progress;
use super::sender::{Sender, milliseconds};
use crate::ownership::OwnershipRecord;
use crate::report::stats::{DowntimeSteps, MigrationState, RoundStats};
use crate::report::trace::Trace;
use crate::rule::{Harvest, Tracker};
use crate::sink::Sink;
use crate::sink::link::Link;
use crate::source::params::MigrationParams;
use crate::vm::machine::SourceMachine;
use crate::wire::SectionError;

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

/// Stops the guest, sends the rest and hands over. After an error the
/// record of ownership says who has the guest; if it is here, it may be stopped.
pub(crate) fn switch_over(
    mut plan: Plan<'_>,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, Link>,
) -> Result<(DowntimeSteps, RoundStats), MigrationError> {
    let (time, round) = (plan.time, plan.round);
    let Plan {
        machine,
        trace,
        progress,
        ..
    } = &mut plan;
    sender.out.check()?;
    tracker.before_pause();
    // One deadline for the whole switchover. Bytes of the destination do not extend it, because the guest is stopped.
    sender.out.sink.stop.set_deadline(time, "the switchover");
    enter(progress, MigrationState::PreSwitchover);
    let mut steps = DowntimeSteps::default();
    let mut clock = Clock(Instant::now());
    machine.stop_vcpus()?;
    trace.record(Event::Paused);
    steps.stop_vcpus = clock.step();
    machine.stop_devices()?;
    trace.record(Event::DevicesStopped);
    steps.stop_devices = clock.step();
    sender.out.sink.stop.check_deadline()?;
    tracker.last_harvest()?;
    steps.last_harvest = clock.step();

    sender.begin_round(round, tracker.bitmap().count());
    sender.walk_the_rest(&tracker.rest())?;
    sender.end_round()?;
    // Nothing writes to memory any more: the pages of the last harvest are among the pending ones.
    let last = sender.take_round(&mut Harvest::default());
    steps.ram = clock.step();

    enter(progress, MigrationState::Device);
    let state = machine.save()?;
    if state.len() as u64 > SectionKind::MachineState.max_length() {
        return Err(MigrationError::StateTooLarge(state.len()));
    }
    sender.out.sink.state(&state)?;
    steps.state = clock.step();
    let totals = sender.stream_totals();
    sender.out.sink.commit(totals)?;
    sender.out.round_received()?;
    sender.out.sink.peer.expect(SectionKind::Ready, "Ready")?;
    steps.commit = clock.step();

    hand_over(plan, sender)?;
    steps.hand_over = clock.step();
    Ok((steps, last))
}

fn hand_over(plan: Plan<'_>, sender: &mut Sender<'_, Link>) -> Result<(), MigrationError> {
    let Plan {
        machine,
        ownership,
        trace,
        params,
        progress,
        ..
    } = plan;
    // Notices a destination that has died since it was ready, while the guest is still ours.
    sender.out.check()?;
    sender.out.sink.stop.check_deadline()?;
    // Whichever is first, this or a cancel, wins.
    if !progress.commit() {
        return Err(MigrationError::Cancelled);
    }
    trace.record(Event::HandOver);
    ownership.give();
    let sent = sender.out.sink.out.hand_over();
    if let Err(error) = &sent
        && error.written == 0
    {
        // No byte was sent, so the destination cannot have the hand-over.
        ownership.keep();
        trace.record(Event::HandOverVoid);
        return sent.map_err(|error| error.source.into());
    }
    machine.hand_over();
    // The destination owns the guest; only its confirmation that the guest runs is missing.
    sender.out.sink.stop.clear_deadline();
    sender.out.sink.set_patience(params.peer_timeout);
    sent.map_err(|error| SectionError::Io(error.source))
        .and_then(|()| sender.out.sink.peer.expect(SectionKind::Running, "Running"))
        .map_err(|error| MigrationError::HandedOverUnconfirmed(Box::new(error.into())))?;
    ownership.given();
    Ok(())
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
