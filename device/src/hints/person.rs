// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as a person sees it: a round of hints that no migration asked for, into a map of the device's own.
//!
//! A migrator takes precedence. While it holds the hints, no person's round can start. A round that is under way when
//! the migrator comes is ended: the guest is told to take its pages back, and the state says why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::control::{EpochReport, HintHolder, HintState, Refusal, RoundEnd};
use spec::hint_map::HintMap;

use crate::balloon::Balloon;
use crate::hints::shared_map::{self, SharedMap};

/// How long a round lasts by default. Meanwhile the guest is without its free memory, and the client that started the
/// round may have been killed.
pub const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// For whom the guest hints, and what became of the last round that a person started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hold {
    /// Whose the map is.
    pub(crate) holder: HintHolder,
    ended: RoundEnd,
    /// When a person's round is ended if nobody has.
    until: Option<Instant>,
    report: EpochReport,
}

impl Balloon {
    /// Asks the guest for its free pages, for a person.
    ///
    /// # Errors
    /// [`Refusal`] if a migrator holds the hints, a round has been started already, or the guest cannot be
    /// asked.
    pub fn start_round(&mut self) -> Result<HintState, Refusal> {
        self.notice_new_driver();
        match self.hold.holder {
            HintHolder::Migrator => return Err(Refusal::Migrating),
            HintHolder::Person if self.hinting.epoch() != 0 => return Err(Refusal::RoundOpen),
            _ => {}
        }
        let pages = self.regions().last().map_or(0, |region| region.end());
        let map = shared_map::private(pages).map_err(|error| {
            log::warn!("{error}");
            Refusal::Resources
        })?;
        let before = self.map.replace(Arc::new(map));
        // Numbers of epochs are the migrator's business; for a person any will do.
        if let Err(refusal) = self.open(self.hinting.status().epochs + 1) {
            self.map = before;
            return Err(refusal);
        }
        let limit = self.round_limit;
        self.hold = Hold {
            holder: HintHolder::Person,
            until: limit.and_then(|limit| Instant::now().checked_add(limit)),
            ..Hold::default()
        };
        Ok(self.hint_state())
    }

    /// Ends the round that a person has started: the guest is told to take its pages back. The map stays.
    ///
    /// # Errors
    /// [`Refusal`] if there is no such round.
    pub fn stop_round(&mut self) -> Result<HintState, Refusal> {
        if self.hold.holder == HintHolder::Migrator {
            return Err(Refusal::Migrating);
        }
        if self.end_round(RoundEnd::Stopped) {
            Ok(self.hint_state())
        } else {
            Err(Refusal::NoRound)
        }
    }

    /// Ends rounds of a person after `limit` from the next one on, or never.
    pub fn set_round_limit(&mut self, limit: Option<Duration>) {
        self.round_limit = limit;
    }

    /// Ends a person's round if its time is over; when to look again, if one is open.
    pub(crate) fn end_overdue_round(&mut self, now: Instant) -> Option<Instant> {
        let open = self.hold.holder == HintHolder::Person && self.hinting.epoch() != 0;
        let until = self.hold.until.filter(|_| open)?;
        if now < until {
            return Some(until);
        }
        log::warn!(
            "a round of hints that nobody has stopped is ended, as its time is over (--hint-round-limit): the guest gets \
             its free memory back"
        );
        self.end_round(RoundEnd::Expired);
        None
    }

    /// How far the guest is, and for whom.
    pub fn hint_state(&self) -> HintState {
        let open = self.hinting.report();
        let round = if open.epoch == 0 {
            &self.hold.report
        } else {
            open
        };
        HintState {
            phase: self.hint_phase(),
            holder: self.hold.holder,
            ended: self.hold.ended,
            command_id: self.hinting.command().to_raw(),
            hints: round.hints,
            pages: round.pages,
            agent_pages: round.agent_pages,
            stale: round.stale,
            rejected: round.rejected,
        }
    }

    /// The map of what has been hinted, to be read without the device's lock.
    pub fn hinted(&self) -> Option<Arc<HintMap<SharedMap>>> {
        self.map.clone()
    }

    /// The guest that hinted has gone: what a person asked it for is no picture of the next one.
    pub(crate) fn forget_map_of_person(&mut self) {
        if self.hold.holder == HintHolder::Person {
            self.map = None;
        }
    }

    /// Ends a person's round, if there is one, and tells the guest. Its last hints are taken.
    pub(crate) fn end_round(&mut self, why: RoundEnd) -> bool {
        let epoch = self.hinting.epoch();
        if self.hold.holder != HintHolder::Person || epoch == 0 {
            return false;
        }
        if why != RoundEnd::Reset {
            self.take_hints();
        }
        self.agent.stop();
        if let Ok(report) = self.hinting.close(epoch) {
            self.hold.report = report;
        }
        self.hold.ended = why;
        if why != RoundEnd::Reset {
            self.hinting.done();
            self.tell_guest();
        }
        self.mirror_end();
        true
    }
}
