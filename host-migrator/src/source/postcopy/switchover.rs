// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The switchover of a postcopy: the guest is stopped, what is still to be sent is promised, and the guest is handed over.

use std::sync::Arc;

use spec::stream::{MAX_SECTION_RUNS, SectionKind};
use spec::trace::Event;

use super::joining::{JoinedLanes, Session};
use super::promise::Promise;
use super::server::Server;
use crate::memory::bitmap::MigrationBitmap;
use crate::memory::guest_memory::GuestMemory;
use crate::report::stats::RoundStats;
use crate::rule::{Harvest, Tracker};
use crate::sink::link::Link;
use crate::source::error::MigrationError;
use crate::source::handover::hand_over;
use crate::source::sender::Sender;
use crate::source::switchover::{Plan, Stopped, send_state, stop};

/// The lanes that have joined, for a guest with this memory.
pub(crate) struct Lanes {
    pub(crate) session: Session,
    pub(crate) joined: JoinedLanes,
    pub(crate) ram: Arc<dyn GuestMemory>,
}

/// Stops the guest, promises the rest as round `round`, and hands over. After an error the record of ownership says who has the guest;
/// if it is here, it may be stopped. The returned server brings what was promised.
pub(crate) fn switch_over(
    mut plan: Plan<'_>,
    round: u32,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, Link>,
    lanes: Lanes,
) -> Result<(Stopped, RoundStats, Server), MigrationError> {
    sender.out.check()?;
    tracker.before_pause();
    let mut stopped = stop(&mut plan, sender.out.sink)?;
    tracker.last_harvest()?;
    stopped.steps.last_harvest = stopped.step();

    let pending = tracker.bitmap();
    sender.begin_round(round, pending.count());
    let promised = MigrationBitmap::new(pending.pages());
    for index in pending.occupied() {
        let bits = pending.claim(index);
        promised.merge(index, bits);
        sender.walk.promised(index, bits);
    }
    let Lanes {
        session,
        joined,
        ram,
    } = lanes;
    let promise = Promise::new(ram, promised);
    let mut server = Server::start(promise, session, joined, plan.params)?;
    let runs = server.promised();
    for run in &runs {
        plan.trace.record(Event::Promised(*run));
    }
    let link = &mut *sender.out.sink;
    if runs.is_empty() {
        // Nothing is missing, and the destination says so at once.
        link.promise(&[])?;
    }
    for runs in runs.chunks(MAX_SECTION_RUNS) {
        link.promise(runs)?;
    }
    sender.end_round()?;
    let last_round = sender.take_round(&mut Harvest::default());
    stopped.steps.ram = stopped.step();

    let totals = sender.stream_totals();
    send_state(&mut plan, sender.out.sink, totals, &mut stopped)?;
    sender.out.round_received()?;
    stopped.steps.commit = stopped.step();
    match hand_over(plan, sender.out.sink, &mut stopped) {
        Ok(()) => {}
        // It is known only when the destination comes back. Until then nothing of the memory is given up.
        Err(MigrationError::HandedOverUnconfirmed(why)) => server.is_unconfirmed(why.to_string()),
        Err(error) => return Err(error),
    }
    Ok((stopped, last_round, server))
}

impl Link {
    /// Tells the destination that the pages of `runs` come after the hand-over.
    fn promise(&mut self, runs: &[spec::PageRange]) -> Result<(), MigrationError> {
        Ok(self.runs(SectionKind::Promised, runs)?)
    }
}
