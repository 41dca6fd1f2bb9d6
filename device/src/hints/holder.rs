// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! For whom the guest hints: a migrator, a person, or nobody.
//!
//! A migrator takes precedence. While it holds the hints, no person's round can start. When a migrator comes, a
//! person's round ends: the guest is told to take its pages back, and the state says why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::balloon::QueueRole;
use spec::control::{HintHolder, HintState, Refusal, RoundEnd};
use spec::hint_map::{HintMap, HintPhase};

use super::hinting::FreePageHinting;
use crate::guest::Guest;
use crate::memory::shared_map::{self, SharedMap, SharedMapError};
use crate::virtqueue::position::QueuePosition;

impl FreePageHinting {
    /// Uses the migrator's hint `map` from now on, if it could be opened. Ends a person's round.
    ///
    /// # Errors
    /// [`Refusal::EpochOpen`] while the migrator has an epoch open, [`Refusal::HintMap`] for a map that could not be
    /// opened.
    pub fn set_map(
        &mut self,
        guest: &mut Guest,
        map: Result<HintMap<SharedMap>, SharedMapError>,
    ) -> Result<(), Refusal> {
        if self.holder == HintHolder::Migrator && self.state.epoch() != 0 {
            return Err(Refusal::EpochOpen);
        }
        let map = map.map_err(|error| {
            log::warn!("{error}");
            Refusal::HintMap
        })?;
        self.end_round(guest, RoundEnd::Migrator);
        self.map = Some(Arc::new(map));
        self.holder = HintHolder::Migrator;
        Ok(())
    }

    /// The migrator has gone. If it has `hinted` and has not sent Done since, the device acts as if it had.
    pub fn migrator_gone(&mut self, guest: &mut Guest, hinted: bool) {
        if hinted {
            self.done(guest);
        }
        self.release();
    }

    /// Asks the guest for its free pages, for a person.
    ///
    /// # Errors
    /// [`Refusal`] if a migrator holds the hints, a round has been started already, or the guest cannot be
    /// asked.
    pub fn start_round(&mut self, guest: &mut Guest) -> Result<HintState, Refusal> {
        match self.holder {
            HintHolder::Migrator => return Err(Refusal::Migrating),
            HintHolder::Person if self.state.epoch() != 0 => return Err(Refusal::RoundOpen),
            _ => {}
        }
        let pages = guest.regions().last().map_or(0, |region| region.end());
        let map = shared_map::private(pages).map_err(|error| {
            log::warn!("{error}");
            Refusal::Resources
        })?;
        let before = self.map.replace(Arc::new(map));
        // Only migrators use numbers of epochs. For a person any number will do.
        if let Err(refusal) = self.open(guest, self.state.status().epochs + 1) {
            self.map = before;
            return Err(refusal);
        }
        self.holder = HintHolder::Person;
        self.round.begin(Instant::now());
        Ok(self.hint_state())
    }

    /// Ends the round for a person and tells the guest DONE. The map stays.
    ///
    /// # Errors
    /// [`Refusal`] if there is no such round.
    pub fn stop_round(&mut self, guest: &mut Guest) -> Result<HintState, Refusal> {
        if self.holder == HintHolder::Migrator {
            return Err(Refusal::Migrating);
        }
        if self.end_round(guest, RoundEnd::Stopped) {
            Ok(self.hint_state())
        } else {
            Err(Refusal::NoRound)
        }
    }

    /// Sets the time limit of a person's rounds, from the next one on; `None` for no limit.
    pub fn set_round_limit(&mut self, limit: Option<Duration>) {
        self.round.set_limit(limit);
    }

    /// Ends a person's round if its time is over. Returns when to check again, if a round is open.
    pub fn end_overdue_round(&mut self, guest: &mut Guest, now: Instant) -> Option<Instant> {
        let open = self.holder == HintHolder::Person && self.state.epoch() != 0;
        let until = self.round.until.filter(|_| open)?;
        if now < until {
            return Some(until);
        }
        log::warn!(
            "a round of hints that nobody has stopped is ended, as its time is over (--hint-round-limit): the guest gets              its free memory back"
        );
        self.end_round(guest, RoundEnd::Expired);
        None
    }

    /// Ends a person's round, if there is one, and tells the guest. Takes its last hints. Returns whether there was a
    /// round.
    pub fn end_round(&mut self, guest: &mut Guest, why: RoundEnd) -> bool {
        let epoch = self.state.epoch();
        if self.holder != HintHolder::Person || epoch == 0 {
            return false;
        }
        if why != RoundEnd::Reset {
            self.take_hints(guest);
        }
        self.agent.stop();
        if let Ok(report) = self.state.close(epoch) {
            self.round.report = report;
        }
        self.round.ended = why;
        if why != RoundEnd::Reset {
            self.state.done();
            guest.tell();
        }
        self.publish_end();
        true
    }

    /// How far the guest is, and for whom it hints.
    pub fn hint_state(&self) -> HintState {
        let open = self.state.report();
        let round = if open.epoch == 0 {
            &self.round.report
        } else {
            open
        };
        HintState {
            phase: self.phase(),
            holder: self.holder,
            ended: self.round.ended,
            command_id: self.state.command().to_raw(),
            hints: round.hints,
            pages: round.pages,
            agent_pages: round.agent_pages,
            stale: round.stale,
            rejected: round.rejected,
        }
    }

    /// Hints of an earlier driver do not apply to a new one. They do apply to a driver that was stopped and goes on.
    pub fn notice_new_driver(&mut self, guest: &mut Guest) {
        let answered = [HintPhase::Running, HintPhase::Finished].contains(&self.state.phase());
        if let Some(ring) = guest.running(QueueRole::FreePageHint)
            && self.position.notice_new_ring(ring)
            && answered
        {
            self.end_answered_round(guest);
        }
    }

    /// The driver that answered has gone. The next one may already have read the command id, so it is told that a
    /// person's round is over. A migrator sends that itself.
    fn end_answered_round(&mut self, guest: &mut Guest) {
        if self.end_round(guest, RoundEnd::Reset) {
            self.state.done();
        } else {
            self.state.reset();
        }
        self.publish_phase();
        guest.tell();
    }

    /// The driver has gone. The map of a round for a person does not apply to the next guest.
    pub fn forget_driver(&mut self, guest: &mut Guest) {
        self.position = QueuePosition::default();
        self.end_round(guest, RoundEnd::Reset);
        if self.holder == HintHolder::Person {
            self.map = None;
        }
        self.state.reset();
        self.agent.stop();
        self.publish_phase();
    }
}
