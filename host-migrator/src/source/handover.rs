// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of the switchover: the destination takes the guest over.
//!
//! The hand-over has two phases, so that the guest never runs in two places. Until the first byte of
//! HandOver was sent, the guest belongs to the source; from then on to the destination.

use spec::stream::SectionKind;
use spec::trace::Event;

use super::error::MigrationError;
use super::sender::Sender;
use super::switchover::{Plan, Stopped, stop_and_send};
use crate::rule::Tracker;
use crate::sink::link::Link;
use crate::wire::SectionError;

/// Stops the guest, sends the rest and hands over. After an error the record of ownership says who has the guest; if it is
/// here, it may be stopped.
pub(crate) fn switch_over(
    mut plan: Plan<'_>,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, Link>,
) -> Result<Stopped, MigrationError> {
    let mut stopped = stop_and_send(&mut plan, tracker, sender)?;
    sender.out.sink.peer.expect(SectionKind::Ready, "Ready")?;
    stopped.steps.commit += stopped.step();
    hand_over(plan, sender)?;
    stopped.steps.hand_over = stopped.step();
    Ok(stopped)
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
