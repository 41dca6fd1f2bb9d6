// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening and closing epochs, and the end of hinting.

use std::time::Instant;

use spec::balloon::{CommandId, QueueRole, feature};
use spec::control::{DeviceStatus, EpochReport, HintHolder, Refusal};
use spec::hint_map::{HintPhase, Tellers};
use spec::trace::Event;

use super::hinting::FreePageHinting;
use crate::guest::Guest;

impl FreePageHinting {
    /// Opens `epoch`: asks the guest for its free pages under a new command id. If the agent can be asked, the driver
    /// is kept in reserve in case that the agent does not answer.
    ///
    /// # Errors
    /// [`Refusal`] if the guest cannot be asked, or its answer would be useless.
    pub fn open(&mut self, guest: &mut Guest, epoch: u64) -> Result<CommandId, Refusal> {
        let asked = self.map.as_ref().map_or(Tellers::ALL, |map| map.asked());
        let agent = asked.agent && self.agent.is_usable();
        let driver = match ask_driver(guest) {
            Ok(()) => asked.driver,
            // The agent alone can answer.
            Err(Refusal::NotNegotiated) if agent => false,
            Err(refusal) => return Err(refusal),
        };
        let map = self.map.clone().ok_or(Refusal::HintMap)?;
        let before = self.state.phase();
        let command_id = self.state.open(epoch)?;
        self.latency.opened(Instant::now());
        self.record(Event::Published(epoch));
        map.begin(epoch, self.state.phase());
        // A round for a person is not a migration, so the agent need not prepare the guest for one.
        let first = self.holder == HintHolder::Migrator && epoch == 1;
        let agent = agent && self.agent.ask_for(command_id, first, map.pages());
        if driver && agent {
            // The agent also reports what the driver would hint, at a lower cost: a driver allocates the
            // memory that it hints, and writes zeros to it first.
            self.state.keep_driver();
        } else if !driver || !guest.tell() {
            self.state.without_driver();
        }
        if self.phase() == HintPhase::Finished {
            self.state.withdraw(before);
            self.publish_end();
            self.record(Event::DeviceClosed(epoch));
            return Err(Refusal::Unreachable);
        }
        self.publish_phase();
        Ok(command_id)
    }

    /// Closes `epoch`: takes the hints that the guest has queued up to now, and none later.
    ///
    /// # Errors
    /// [`Refusal::NoSuchEpoch`] if `epoch` is not open.
    pub fn close(&mut self, guest: &mut Guest, epoch: u64) -> Result<EpochReport, Refusal> {
        if epoch != 0 && epoch == self.state.epoch() {
            self.take_hints(guest);
        }
        let report = self.state.close(epoch)?;
        self.agent.stop();
        self.publish_end();
        self.record(Event::DeviceClosed(epoch));
        guest.tell();
        Ok(report)
    }

    /// The migration is over: the guest is told DONE, and the migrator's map is released.
    pub fn done(&mut self, guest: &mut Guest) {
        self.state.done();
        self.agent.stop();
        self.publish_end();
        guest.tell();
        self.release();
    }

    /// Releases the map, which was the migrator's.
    pub(super) fn release(&mut self) {
        self.map = None;
        self.holder = HintHolder::Nobody;
    }

    /// The state of hinting.
    pub fn status(&self, guest: &Guest) -> DeviceStatus {
        DeviceStatus {
            features: guest.features(),
            poison: guest.poison(),
            ..self.state.status()
        }
    }
}

/// Whether the driver can be asked for hints, and its answer would be useful.
fn ask_driver(guest: &Guest) -> Result<(), Refusal> {
    let Some(ring) = guest.ring(QueueRole::FreePageHint) else {
        return Err(if guest.has(feature::FREE_PAGE_HINT) {
            Refusal::Stopped
        } else {
            Refusal::NotNegotiated
        });
    };
    if !ring.runs() {
        return Err(Refusal::Stopped);
    }
    if guest.poison() != 0 {
        return Err(Refusal::Poison);
    }
    Ok(())
}
