// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as the migrator sees it: a hint map, and epochs that are opened and closed.
//!
//! Every function here runs under the device's lock, as does every pass over a queue. So when
//! [`Balloon::close`] returns, no pass is under way, and none later sets a bit.

use std::sync::Arc;
use std::time::Instant;

use spec::balloon::{CommandId, QueueRole, feature};
use spec::control::{DeviceStatus, EpochReport, HintHolder, Refusal, RoundEnd};
use spec::hint_map::{HintMap, HintPhase, Tellers};
use spec::trace::Event;

use crate::balloon::Balloon;
use crate::hints::shared_map::{SharedMap, SharedMapError};
use crate::vhost_user::rings;

impl Balloon {
    /// The feature bits that the guest has taken.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Uses the migrator's hint `map`, as it could be opened, instead of any before. A person's round ends with it.
    ///
    /// # Errors
    /// [`Refusal::EpochOpen`] while the migrator has an epoch open, [`Refusal::HintMap`] for a map that could not be
    /// opened.
    pub fn set_hint_map(
        &mut self,
        map: Result<HintMap<SharedMap>, SharedMapError>,
    ) -> Result<(), Refusal> {
        if self.hold.holder == HintHolder::Migrator && self.hinting.epoch() != 0 {
            return Err(Refusal::EpochOpen);
        }
        let map = map.map_err(|error| {
            log::warn!("{error}");
            Refusal::HintMap
        })?;
        self.end_round(RoundEnd::Migrator);
        self.map = Some(Arc::new(map));
        self.hold.holder = HintHolder::Migrator;
        Ok(())
    }

    /// Opens `epoch`: asks the guest for its free pages, under a new command id. Where the agent can be asked, the
    /// driver is kept in reserve, for an agent that does not answer.
    ///
    /// # Errors
    /// [`Refusal`] if the guest cannot be asked, or its answer could not be used.
    pub fn open(&mut self, epoch: u64) -> Result<CommandId, Refusal> {
        let asked = self.map.as_ref().map_or(Tellers::ALL, |map| map.asked());
        let agent = asked.agent && self.agent.is_usable();
        let driver = match self.ask_driver() {
            Ok(()) => asked.driver,
            // The agent alone can do it.
            Err(Refusal::NotNegotiated) if agent => false,
            Err(refusal) => return Err(refusal),
        };
        let map = self.map.clone().ok_or(Refusal::HintMap)?;
        let before = self.hinting.phase();
        let command_id = self.hinting.open(epoch)?;
        self.latency.opened(Instant::now());
        self.record_hinting(Event::Published(epoch));
        map.begin(epoch, self.hinting.phase());
        // A person's round is no migration: nobody gains by what the agent would do before one.
        let first = self.hold.holder == HintHolder::Migrator && epoch == 1;
        let agent = agent && self.agent.ask_for(command_id, first, map.pages());
        if driver && agent {
            // What the driver would hint the agent tells, too, and more cheaply: a driver takes the memory that it
            // hints, and writes zeros to it first.
            self.hinting.keep_driver();
        } else if !driver || !self.tell_guest() {
            self.hinting.without_driver();
        }
        if self.hint_phase() == HintPhase::Finished {
            self.hinting.withdraw(before);
            self.mirror_end();
            self.record_hinting(Event::DeviceClosed(epoch));
            return Err(Refusal::Unreachable);
        }
        self.publish_phase();
        Ok(command_id)
    }

    /// The agent does not tell all of the open epoch's free pages: the driver is asked, if it was kept for that.
    pub(crate) fn call_driver(&mut self) {
        if self.hinting.call_driver() && !self.tell_guest() {
            self.hinting.without_driver();
        }
    }

    /// Whether the driver can be asked for hints, and its answer be used.
    fn ask_driver(&self) -> Result<(), Refusal> {
        let Some(ring) = self.ring(QueueRole::FreePageHint) else {
            return Err(if self.has(feature::FREE_PAGE_HINT) {
                Refusal::Stopped
            } else {
                Refusal::NotNegotiated
            });
        };
        if !rings::runs(ring) {
            return Err(Refusal::Stopped);
        }
        if self.poison() != 0 {
            return Err(Refusal::Poison);
        }
        Ok(())
    }

    /// Closes `epoch`: takes what the guest has queued up to now, and nothing after it.
    ///
    /// # Errors
    /// [`Refusal::NoSuchEpoch`] if it is not the open one.
    pub fn close(&mut self, epoch: u64) -> Result<EpochReport, Refusal> {
        if epoch != 0 && epoch == self.hinting.epoch() {
            self.take_hints();
        }
        let report = self.hinting.close(epoch)?;
        self.agent.stop();
        self.mirror_end();
        self.record_hinting(Event::DeviceClosed(epoch));
        self.tell_guest();
        Ok(report)
    }

    /// The migration is over: the guest is told to take its pages back, and the migrator's map is let go of.
    pub fn done(&mut self) {
        self.hinting.done();
        self.agent.stop();
        self.mirror_end();
        self.tell_guest();
        self.release();
    }

    /// The migrator has gone. If it has `hinted` since it last said that hinting is over, the device says
    /// so for it.
    pub fn migrator_gone(&mut self, hinted: bool) {
        if hinted {
            self.done();
        }
        self.release();
    }

    /// Where things stand.
    pub fn status(&self) -> DeviceStatus {
        DeviceStatus {
            features: self.features,
            poison: self.poison(),
            ..self.hinting.status()
        }
    }

    /// A person's round is no business of the rule: no migration uses its hints.
    pub(crate) fn record_hinting(&self, event: Event) {
        if self.hold.holder == HintHolder::Migrator {
            self.trace.record(event);
        }
    }

    /// The map was the migrator's, and is nobody's now.
    fn release(&mut self) {
        self.map = None;
        self.hold.holder = HintHolder::Nobody;
    }

    /// Writes into the map that no epoch is open.
    pub(crate) fn mirror_end(&self) {
        if let Some(map) = &self.map {
            let done = self.hinting.phase() == HintPhase::Done;
            map.end(if done {
                HintPhase::Done
            } else {
                HintPhase::Closed
            });
        }
    }
}
