// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The maps of the guest's agent: which of them count, and how they enter the hint map.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use spec::agent::{Answer, Frame, FreeMap};
use spec::hint_map::HintPhase;
use spec::trace::Event;
use spec::trace::event::Hinted;

use super::agent::{Agent, tag};
use super::hinting::FreePageHinting;
use crate::guest::Guest;

impl FreePageHinting {
    /// An agent can be reached through `port`.
    pub fn agent_came(&mut self, port: Arc<UnixStream>) {
        self.agent = Agent::at(port);
    }

    /// Sends the agent a Hello, which a living agent answers.
    pub fn greet_agent(&self) {
        self.agent.greet();
    }

    /// The agent has disconnected. Its reports in the open epoch still count.
    pub fn agent_gone(&mut self, guest: &mut Guest) {
        if std::mem::take(&mut self.agent).is_awaited() {
            self.call_driver(guest);
        }
        self.publish_phase();
    }

    /// Asks the driver if the agent has fallen silent. Returns when to call this again, if that is known.
    pub fn await_agent(&mut self, guest: &mut Guest, now: Instant) -> Option<Instant> {
        let until = self.agent.awaited_until()?;
        if now < until {
            return Some(until);
        }
        self.call_driver(guest);
        self.publish_phase();
        None
    }

    /// The agent has sent `frame`. Returns `false` if the frame was useless.
    pub fn agent_said(&mut self, guest: &mut Guest, frame: &Frame<'_>) -> bool {
        let useful = match Answer::read(frame) {
            Ok(Answer::Hello(settings)) => self.agent.introduce(settings),
            Ok(Answer::Map { epoch, map }) => self.agent_map(guest, epoch, &map),
            Ok(Answer::End { epoch, totals }) => {
                log::debug!("the agent's map of epoch {epoch}: {totals:?}");
                let is_awaited = self.agent_ended(epoch);
                if is_awaited && let Some(hints) = &self.map {
                    // Nothing more will come, so the migrator need not wait.
                    hints.set_answered(u64::MAX);
                }
                is_awaited
            }
            Ok(Answer::Failed { epoch, errno }) => {
                let is_awaited = self.agent_ended(epoch);
                if is_awaited {
                    log::warn!("the guest's agent cannot read free pages: error {errno}");
                    self.call_driver(guest);
                }
                is_awaited
            }
            Err(error) => {
                log::debug!("{error}");
                false
            }
        };
        self.publish_phase();
        useful
    }

    /// Takes the map of a part of memory into the open epoch.
    fn agent_map(&mut self, guest: &mut Guest, epoch: u64, map: &FreeMap<'_>) -> bool {
        if !self.awaits_agent(epoch) {
            self.state.stale();
            return false;
        }
        if self.agent.begins_to_tell(map.range().count()).is_err() {
            self.state.stale();
            self.call_driver(guest);
            return false;
        }
        // The rule knows epochs by the migrator's numbers.
        let epoch = self.state.epoch();
        let added = self.map.as_deref().map_or(0, |hints| {
            let parts = map.runs().flat_map(|run| {
                let regions = guest.regions().iter();
                regions.filter_map(move |region| region.intersection(run))
            });
            let take = |pages| {
                self.record(Event::Hint(Hinted { epoch, pages }));
                hints.insert_of_agent(pages)
            };
            parts.map(take).sum()
        });
        let told_to = self.agent.has_told(map.range(), guest.regions());
        if let Some(hints) = &self.map {
            // After the bits: a reader that sees this also sees the bits.
            hints.set_answered(told_to);
        }
        self.state.told_by_agent(added);
        true
    }

    fn agent_ended(&mut self, epoch: u64) -> bool {
        let awaited = self.awaits_agent(epoch);
        if awaited {
            self.agent.has_ended();
        }
        awaited
    }

    /// Whether `epoch` is open, the guest has not been reset in it, and the agent has not reported everything.
    fn awaits_agent(&self, epoch: u64) -> bool {
        let open = matches!(
            self.state.phase(),
            HintPhase::Requested | HintPhase::Running | HintPhase::Finished
        );
        open && epoch == tag(self.state.command_id()) && self.agent.is_awaited()
    }
}
