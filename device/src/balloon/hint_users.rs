// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's interface for the users of hints: the migrator, a person, and the guest's agent. What each call does is
//! documented at [`FreePageHinting`].

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use spec::agent::Frame;
use spec::balloon::CommandId;
use spec::control::{DeviceStatus, EpochReport, HintState, Refusal, RoundEnd};
use spec::hint_map::HintMap;

use super::Balloon;
#[cfg(doc)]
use crate::hints::FreePageHinting;
use crate::hints::latency::HintLatency;
use crate::memory::shared_map::{SharedMap, SharedMapError};

impl Balloon {
    /// As [`FreePageHinting::set_map`].
    ///
    /// # Errors
    /// As [`FreePageHinting::set_map`].
    pub fn set_hint_map(
        &mut self,
        map: Result<HintMap<SharedMap>, SharedMapError>,
    ) -> Result<(), Refusal> {
        self.hinting.set_map(&mut self.guest, map)
    }

    /// As [`FreePageHinting::open`].
    ///
    /// # Errors
    /// As [`FreePageHinting::open`].
    pub fn open(&mut self, epoch: u64) -> Result<CommandId, Refusal> {
        self.hinting.open(&mut self.guest, epoch)
    }

    /// As [`FreePageHinting::close`].
    ///
    /// # Errors
    /// As [`FreePageHinting::close`].
    pub fn close(&mut self, epoch: u64) -> Result<EpochReport, Refusal> {
        self.hinting.close(&mut self.guest, epoch)
    }

    /// As [`FreePageHinting::done`].
    pub fn done(&mut self) {
        self.hinting.done(&mut self.guest);
    }

    /// As [`FreePageHinting::migrator_gone`].
    pub fn migrator_gone(&mut self, hinted: bool) {
        self.hinting.migrator_gone(&mut self.guest, hinted);
    }

    /// The state of hinting.
    pub fn status(&self) -> DeviceStatus {
        self.hinting.status(&self.guest)
    }

    /// As [`FreePageHinting::start_round`].
    ///
    /// # Errors
    /// As [`FreePageHinting::start_round`].
    pub fn start_round(&mut self) -> Result<HintState, Refusal> {
        self.notice_new_driver();
        self.hinting.start_round(&mut self.guest)
    }

    /// As [`FreePageHinting::stop_round`].
    ///
    /// # Errors
    /// As [`FreePageHinting::stop_round`].
    pub fn stop_round(&mut self) -> Result<HintState, Refusal> {
        self.hinting.stop_round(&mut self.guest)
    }

    /// As [`FreePageHinting::end_round`].
    pub fn end_round(&mut self, why: RoundEnd) -> bool {
        self.hinting.end_round(&mut self.guest, why)
    }

    /// As [`FreePageHinting::set_round_limit`].
    pub fn set_round_limit(&mut self, limit: Option<Duration>) {
        self.hinting.set_round_limit(limit);
    }

    /// How far the guest is, and for whom it hints.
    pub fn hint_state(&self) -> HintState {
        self.hinting.hint_state()
    }

    /// The map of hinted pages, which can be read without the device's lock.
    pub fn hinted(&self) -> Option<Arc<HintMap<SharedMap>>> {
        self.hinting.map()
    }

    /// How long hints take.
    pub fn hint_latency(&self) -> &HintLatency {
        self.hinting.latency()
    }

    /// As [`FreePageHinting::agent_came`].
    pub fn agent_came(&mut self, port: Arc<UnixStream>) {
        self.hinting.agent_came(port);
    }

    /// As [`FreePageHinting::greet_agent`].
    pub fn greet_agent(&self) {
        self.hinting.greet_agent();
    }

    /// As [`FreePageHinting::agent_gone`].
    pub fn agent_gone(&mut self) {
        self.hinting.agent_gone(&mut self.guest);
    }

    /// As [`FreePageHinting::agent_said`].
    pub fn agent_said(&mut self, frame: &Frame<'_>) -> bool {
        self.hinting.agent_said(&mut self.guest, frame)
    }
}
