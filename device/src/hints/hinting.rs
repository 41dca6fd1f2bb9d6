// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of free page hinting: the hint queue, the map, and how far the guest is.
//!
//! Every function here runs under the device's lock, as does every pass over a queue. So when
//! [`FreePageHinting::close`] returns, no pass is under way, and none later sets a bit.

use std::sync::Arc;
use std::time::Instant;

use spec::balloon::{Command, CommandId, QueueRole};
use spec::control::HintHolder;
use spec::hint_map::{HintMap, HintPhase};
use spec::trace::Event;

use super::agent::Agent;
use super::latency::HintLatency;
use super::person::PersonRound;
use super::sink::HintSink;
use super::state_machine::Hinting;
use crate::guest::Guest;
use crate::memory::shared_map::SharedMap;
use crate::trace::Trace;
use crate::virtqueue::buffers::{self, Chain};
use crate::virtqueue::position::QueuePosition;
use crate::virtqueue::ring::MAX_QUEUE_SIZE;

/// Free page hinting.
#[derive(Debug)]
pub struct FreePageHinting {
    pub(super) state: Hinting,
    pub(super) latency: HintLatency,
    /// The agent, which is a source of hints besides the driver.
    pub(super) agent: Agent,
    /// Who holds the map.
    pub(super) holder: HintHolder,
    /// The last round that a person started.
    pub(super) round: PersonRound,
    pub(super) map: Option<Arc<HintMap<SharedMap>>>,
    pub(super) position: QueuePosition,
    /// Whether the hint queue has run since the front end connected.
    pub(super) queue_seen: bool,
    pub(super) trace: Trace,
}

impl Default for FreePageHinting {
    fn default() -> Self {
        Self {
            state: Hinting::after(CommandId::spread(seed())),
            latency: HintLatency::default(),
            agent: Agent::default(),
            holder: HintHolder::default(),
            round: PersonRound::none(),
            map: None,
            position: QueuePosition::default(),
            queue_seen: false,
            trace: Trace::default(),
        }
    }
}

/// The first command id of this device. Hints that a guest has queued for a device that died, and maps that its agent
/// has sent, carry that device's ids. The new device must not use such an id again.
fn seed() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(4) => u32::from_le_bytes(bytes),
        // No random numbers this early after boot, so no other device has died on this machine.
        _ => 0,
    }
}

impl FreePageHinting {
    /// Records what happens from now on in `trace`.
    pub fn record_in(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// What the guest shall read in `free_page_hint_cmd_id`.
    pub fn command(&self) -> Command {
        self.state.command()
    }

    /// The command id of the open epoch, or of the last one.
    pub fn command_id(&self) -> CommandId {
        self.state.command_id()
    }

    /// The latencies of hints.
    pub fn latency(&self) -> &HintLatency {
        &self.latency
    }

    /// The map of hinted pages. It can be read without the device's lock.
    pub fn map(&self) -> Option<Arc<HintMap<SharedMap>>> {
        self.map.clone()
    }

    /// How far the guest is, driver and agent taken together.
    pub fn phase(&self) -> HintPhase {
        match (self.state.phase(), self.agent.phase()) {
            (driver @ (HintPhase::Closed | HintPhase::Done), _) => driver,
            (HintPhase::Running, _) | (_, HintPhase::Running) => HintPhase::Running,
            (HintPhase::Requested, _) | (_, HintPhase::Requested) => HintPhase::Requested,
            _ => HintPhase::Finished,
        }
    }

    /// Takes the hints that the guest has queued up to now.
    pub fn take_hints(&mut self, guest: &Guest) {
        let Some((ring, memory)) = guest.queue(QueueRole::FreePageHint) else {
            return;
        };
        let (begin, hints) = (Instant::now(), self.state.status().hints);
        let mut sink = HintSink::new(
            &mut self.state,
            self.map.as_deref(),
            guest.regions(),
            MAX_QUEUE_SIZE as u32,
        );
        if self.holder == HintHolder::Migrator {
            sink = sink.recorded(&self.trace);
        }
        let result = buffers::drain(ring, memory, |chain| {
            sink.chain(chain);
            Chain::Used
        });
        if let Err(error) = result {
            log::debug!("hint queue: {error}");
            self.state.broken_chain();
        }
        self.position.leave(ring);
        let hints = self.state.status().hints - hints;
        self.latency.batch(begin, Instant::now(), hints);
        self.publish_phase();
    }

    /// The hint queue is being stopped. Queued hints stay in the queue: none is needed.
    pub fn queue_stops(&mut self) {
        self.position.stop();
    }

    /// The hint queue has been started. If it was used before, the guest may hold pages that it hinted to a device that
    /// is gone. Nobody else tells the guest to take them back.
    pub fn queue_starts(&mut self, guest: &mut Guest) {
        if std::mem::replace(&mut self.queue_seen, true) || self.state.epoch() != 0 {
            return;
        }
        let queue = guest.queue(QueueRole::FreePageHint);
        if queue.is_some_and(|(ring, memory)| !ring.is_unused(memory)) {
            self.state.done();
            guest.config.tell_later();
        }
    }

    /// The front end has hung up.
    pub fn front_end_gone(&mut self) {
        self.queue_seen = false;
    }

    /// Goes on from a device that migrated here and has used ids up to `last`.
    pub fn restore(&mut self, last: CommandId) {
        self.state.restore(last);
    }

    /// The agent does not report all free pages of the open epoch. Asks the driver, if it is in reserve.
    pub(super) fn call_driver(&mut self, guest: &mut Guest) {
        if self.state.call_driver() && !guest.tell() {
            self.state.without_driver();
        }
    }

    /// Writes the guest's phase into the map.
    pub(super) fn publish_phase(&self) {
        if let Some(map) = &self.map {
            map.set_phase(self.phase());
        }
    }

    /// Writes into the map that no epoch is open.
    pub(super) fn publish_end(&self) {
        if let Some(map) = &self.map {
            let done = self.state.phase() == HintPhase::Done;
            map.end(if done {
                HintPhase::Done
            } else {
                HintPhase::Closed
            });
        }
    }

    /// The trace does not record a round for a person, because no migration uses its hints.
    pub(super) fn record(&self, event: Event) {
        if self.holder == HintHolder::Migrator {
            self.trace.record(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_devices_do_not_begin_with_the_same_command_id() {
        let ids: std::collections::BTreeSet<_> = (0..8)
            .map(|_| FreePageHinting::default().command_id().get())
            .collect();
        assert!(ids.len() > 1, "{ids:x?}");
        assert!(ids.iter().all(|id| *id >= CommandId::FIRST.get()));
    }
}
