// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of the switchover: the destination takes the guest over.
//!
//! The hand-over has two phases, so that the guest never runs in two places. Until the first byte of
//! HandOver was sent, the guest belongs to the source; from then on to the destination.

use spec::stream::SectionKind;
use spec::trace::Event;

use super::error::MigrationError;
use super::progress::Progress;
use super::sender::Sender;
use super::switchover::{Plan, Stopped, stop_and_send};
use crate::report::stats::RoundStats;
use crate::rule::Tracker;
use crate::sink::Sink;
use crate::sink::link::Link;
use crate::wire::SectionError;

/// Stops the guest, sends the rest and hands over. After an error the record of ownership says who has the guest; if it is
/// here, it may be stopped.
pub(crate) fn switch_over(
    mut plan: Plan<'_>,
    round: u32,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, Link>,
) -> Result<(Stopped, RoundStats), MigrationError> {
    let (mut stopped, last_round) = stop_and_send(&mut plan, round, tracker, sender)?;
    hand_over(plan, sender.out.sink, &mut stopped)?;
    Ok((stopped, last_round))
}

/// Hands over the guest, of which everything has been sent, when the destination is ready.
pub(crate) fn hand_over(
    plan: Plan<'_>,
    link: &mut Link,
    stopped: &mut Stopped,
) -> Result<(), MigrationError> {
    link.peer.expect(SectionKind::Ready, "Ready")?;
    stopped.steps.commit += stopped.step();
    give(plan, link)?;
    stopped.steps.hand_over = stopped.step();
    Ok(())
}

fn give(plan: Plan<'_>, link: &mut Link) -> Result<(), MigrationError> {
    let Plan {
        machine,
        ownership,
        trace,
        params,
        progress,
        ..
    } = plan;
    // Notices a destination that has died since it was ready, while the guest is still ours.
    check(progress, link)?;
    // Whichever is first, this or a cancel, wins.
    if !progress.commit() {
        return Err(MigrationError::Cancelled);
    }
    trace.record(Event::HandOver);
    ownership.give();
    let sent = link.out.hand_over();
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
    link.stop.clear_deadline();
    link.set_patience(params.peer_timeout);
    sent.map_err(|error| SectionError::Io(error.source))
        .and_then(|()| link.peer.expect(SectionKind::Running, "Running"))
        .map_err(|error| MigrationError::HandedOverUnconfirmed(Box::new(error.into())))?;
    ownership.given();
    Ok(())
}

/// Returns an error if the migration was cancelled, or the destination has given up.
pub(crate) fn check(progress: &Progress, link: &mut Link) -> Result<(), MigrationError> {
    if progress.is_cancelled() {
        return Err(MigrationError::Cancelled);
    }
    Ok(link.check()?)
}
