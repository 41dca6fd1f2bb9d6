// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as the migrator sees it: a hint map, and epochs that are opened and closed.
//!
//! Every function here runs under the device's lock, as does every pass over a queue. So when
//! [`Balloon::close`] returns, no pass is under way, and none later sets a bit.

use std::os::fd::OwnedFd;

use spec::balloon::{CommandId, QueueRole, feature};
use spec::control::{DeviceStatus, EpochReport, Refusal};
use spec::hint_map::HintPhase;

use crate::balloon::Balloon;
use crate::{rings, shared_map};

impl Balloon {
    /// The feature bits that the guest has taken.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Uses the hint map in `file`, instead of any before.
    ///
    /// # Errors
    /// [`Refusal::EpochOpen`] while an epoch is open, [`Refusal::HintMap`] for a file that is none.
    pub fn set_hint_map(&mut self, file: OwnedFd, bytes: u64) -> Result<(), Refusal> {
        if self.hinting.epoch() != 0 {
            return Err(Refusal::EpochOpen);
        }
        match shared_map::open(file, bytes) {
            Ok(map) => {
                self.map = Some(map);
                Ok(())
            }
            Err(error) => {
                log::warn!("{error}");
                Err(Refusal::HintMap)
            }
        }
    }

    /// Opens `epoch`: asks the guest for its free pages, under a new command id.
    ///
    /// # Errors
    /// [`Refusal`] if the guest cannot be asked, or its answer could not be used.
    pub fn open(&mut self, epoch: u64) -> Result<CommandId, Refusal> {
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
        let map = self.map.as_ref().ok_or(Refusal::HintMap)?;
        let command_id = self.hinting.open(epoch)?;
        map.begin(epoch, self.hinting.phase());
        if self.tell_guest() {
            return Ok(command_id);
        }
        self.hinting.close(epoch)?;
        self.mirror_end();
        Err(Refusal::Unreachable)
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
        self.mirror_end();
        self.tell_guest();
        Ok(report)
    }

    /// Hinting is over: the guest is told to take its pages back.
    pub fn done(&mut self) {
        self.hinting.done();
        self.mirror_end();
        self.tell_guest();
    }

    /// The migrator has gone. If it has `hinted` since it last said that hinting is over, the device says
    /// so for it.
    pub fn migrator_gone(&mut self, hinted: bool) {
        if hinted {
            self.done();
        }
        self.map = None;
    }

    /// Where things stand.
    pub fn status(&self) -> DeviceStatus {
        DeviceStatus {
            features: self.features,
            poison: self.poison(),
            ..self.hinting.status()
        }
    }

    fn mirror_end(&self) {
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
