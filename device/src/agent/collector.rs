// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which of the agent's maps count, and what they bring.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use spec::agent::{Answer, Ask, Frame, FreeMap, Settings, VERSION};
use spec::balloon::CommandId;
use spec::hint_map::HintPhase;
use spec::trace::Event;
use spec::trace::event::Hinted;
use spec::{PAGE_SIZE, PageRange};

use crate::balloon::Balloon;

/// If the agent tells nothing for this long, the driver is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);

/// The agent as the device knows it.
#[derive(Debug, Default)]
pub struct Agent {
    /// The host's end of its port, as long as a connection is there.
    port: Option<Arc<UnixStream>>,
    /// What it has said of its kernel.
    settings: Option<Settings>,
    answer: Progress,
    /// Pages that the answer may yet speak of: an honest one names each page once.
    left: u64,
    /// It has told all of memory below this page.
    told_to: u64,
    /// When it was asked, or last told something since.
    heard: Option<Instant>,
}

/// How far the agent is with its answer to the open epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// Nothing is wanted of it, or it has told all.
    #[default]
    Over,
    Asked,
    Answering,
}

impl Agent {
    /// Whether there is an agent whose maps may be used.
    pub fn is_usable(&self) -> bool {
        self.port.is_some()
            && self
                .settings
                .is_some_and(|settings| why_not(&settings).is_none())
    }

    /// How far it is, in the terms of the driver's hints.
    pub fn phase(&self) -> HintPhase {
        match self.answer {
            Progress::Over => HintPhase::Finished,
            Progress::Asked => HintPhase::Requested,
            Progress::Answering => HintPhase::Running,
        }
    }

    /// Asks for a map of a guest with `pages` pages under `id`, in the `first` epoch of a migration or a later one.
    /// Returns whether it could be asked.
    pub fn ask_for(&mut self, id: CommandId, first: bool, pages: u64) -> bool {
        self.answer = Progress::Over;
        let epoch = tag(id);
        let asked = self.is_usable() && self.say(Ask::Map { epoch, first });
        if asked {
            self.answer = Progress::Asked;
            self.left = pages;
            self.told_to = 0;
            self.heard = Some(Instant::now());
        }
        asked
    }

    /// Until when its next word is waited for, if one is.
    fn awaited_until(&self) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.answer != Progress::Over);
        heard.map(|heard| heard + PATIENCE)
    }

    /// Nothing more is wanted of it.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.answer) != Progress::Over {
            self.say(Ask::Stop);
        }
    }

    /// Sends a question. An agent that does not take so few bytes has stopped reading: it is hung up on.
    fn say(&self, ask: Ask) -> bool {
        let Some(port) = &self.port else {
            return false;
        };
        let frame = ask.to_frame();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::send(&**port, &frame, flags);
        if sent != Ok(frame.len()) {
            // The thread that reads from it finds it closed.
            let _ = port.shutdown(std::net::Shutdown::Both);
        }
        sent == Ok(frame.len())
    }
}

impl Balloon {
    /// An agent can be reached through `port`.
    pub fn agent_came(&mut self, port: Arc<UnixStream>) {
        self.agent = Agent {
            port: Some(port),
            ..Agent::default()
        };
        self.agent.say(Ask::Hello);
    }

    /// Asks the agent who it is: one that lives says so.
    pub fn greet_agent(&self) {
        self.agent.say(Ask::Hello);
    }

    /// The agent has gone. What it has told in the open epoch stands.
    pub fn agent_gone(&mut self) {
        if std::mem::take(&mut self.agent).answer != Progress::Over {
            self.call_driver();
        }
        self.publish_phase();
    }

    /// Asks the driver for what an agent that has fallen silent does not tell. When to look again, if that is known.
    pub(crate) fn await_agent(&mut self, now: Instant) -> Option<Instant> {
        let until = self.agent.awaited_until()?;
        if now < until {
            return Some(until);
        }
        self.call_driver();
        self.publish_phase();
        None
    }

    /// The agent has sent `frame`. `false` if that was of no use.
    pub fn agent_said(&mut self, frame: &Frame<'_>) -> bool {
        let useful = match Answer::read(frame) {
            Ok(Answer::Hello(settings)) => {
                let is_news = self.agent.settings != Some(settings);
                if is_news && let Some(why) = why_not(&settings) {
                    log::warn!("the guest's agent is not asked for free pages: {why}");
                }
                self.agent.settings = Some(settings);
                is_news
            }
            Ok(Answer::Map { epoch, map }) => self.agent_map(epoch, &map),
            Ok(Answer::End { epoch, totals }) => {
                log::debug!("the agent's map of epoch {epoch}: {totals:?}");
                let is_news = self.agent_ended(epoch);
                if is_news && let Some(hints) = &self.map {
                    // Nothing more comes: no page is worth waiting for.
                    hints.set_answered(u64::MAX);
                }
                is_news
            }
            Ok(Answer::Failed { epoch, errno }) => {
                let is_news = self.agent_ended(epoch);
                if is_news {
                    log::warn!("the guest's agent cannot tell free pages: error {errno}");
                    self.call_driver();
                }
                is_news
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
    fn agent_map(&mut self, epoch: u64, map: &FreeMap<'_>) -> bool {
        let pages = map.range().count();
        if !self.awaits_agent(epoch) {
            self.hinting.stale();
            return false;
        }
        let Some(left) = self.agent.left.checked_sub(pages) else {
            // It speaks of some pages again and again.
            self.agent.answer = Progress::Over;
            self.hinting.stale();
            self.call_driver();
            return false;
        };
        self.agent.left = left;
        self.agent.heard = Some(Instant::now());
        self.agent.answer = Progress::Answering;
        // The rule knows epochs by the migrator's numbers.
        let epoch = self.hinting.epoch();
        let added = self.map.as_deref().map_or(0, |hints| {
            let parts = map.runs().flat_map(|run| {
                let regions = self.regions().iter();
                regions.filter_map(move |region| region.intersection(run))
            });
            let take = |pages| {
                self.record_hinting(Event::Hint(Hinted { epoch, pages }));
                hints.insert_of_agent(pages)
            };
            parts.map(take).sum()
        });
        self.agent.told_to = told_to(self.agent.told_to, map.range(), self.regions());
        if let Some(hints) = &self.map {
            // After the bits: who sees this sees them, too.
            hints.set_answered(self.agent.told_to);
        }
        self.hinting.told_by_agent(added);
        true
    }

    fn agent_ended(&mut self, epoch: u64) -> bool {
        let awaited = self.awaits_agent(epoch);
        if awaited {
            self.agent.answer = Progress::Over;
        }
        awaited
    }

    /// Whether `epoch` is the open one, the guest has not been reset in it, and the agent has not told all.
    fn awaits_agent(&self, epoch: u64) -> bool {
        let open = matches!(
            self.hinting.phase(),
            HintPhase::Requested | HintPhase::Running | HintPhase::Finished
        );
        open && epoch == tag(self.hinting.command_id()) && self.agent.answer != Progress::Over
    }

    /// How far the guest is, driver and agent together.
    pub(crate) fn hint_phase(&self) -> HintPhase {
        match (self.hinting.phase(), self.agent.phase()) {
            (driver @ (HintPhase::Closed | HintPhase::Done), _) => driver,
            (HintPhase::Running, _) | (_, HintPhase::Running) => HintPhase::Running,
            (HintPhase::Requested, _) | (_, HintPhase::Requested) => HintPhase::Requested,
            _ => HintPhase::Finished,
        }
    }

    /// Writes into the map how far the guest is.
    pub(crate) fn publish_phase(&self) {
        if let Some(map) = &self.map {
            map.set_phase(self.hint_phase());
        }
    }
}

/// The number of an epoch in the agent's frames. Those of the migrator begin anew with each migration, and a frame
/// of the one before may still be under way.
fn tag(id: CommandId) -> u64 {
    id.get().into()
}

/// Up to where memory has been told after `range`, of a guest whose memory is `regions`, if it was up to `before`.
/// An agent has nothing to say about page frames that are no memory.
fn told_to(before: u64, range: PageRange, regions: &[PageRange]) -> u64 {
    let next_untold = |page: u64| {
        let region = regions.iter().find(|region| region.end() > page);
        region.map_or(u64::MAX, |region| region.first().max(page))
    };
    if range.first() <= next_untold(before) {
        next_untold(before.max(range.end()))
    } else {
        before
    }
}

/// Why maps of a kernel with these settings cannot be used, if so.
fn why_not(settings: &Settings) -> Option<&'static str> {
    if settings.version != VERSION {
        Some("it speaks another version of the protocol")
    } else if u64::from(settings.page_size) != PAGE_SIZE {
        Some("its kernel's pages are not of 4 KiB")
    } else if !settings.free_pages_may_be_zero() {
        Some("its kernel checks the content of free pages, so they are all sent")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_from_its_beginning_on_without_a_gap() {
        let range = |first, count| PageRange::new(first, count).unwrap();
        let regions = [range(10, 90), range(200, 100)];
        let after = |before, first, count| told_to(before, range(first, count), &regions);
        assert_eq!(after(0, 0, 50), 50);
        assert_eq!(after(0, 10, 40), 50, "below page 10 there is no memory");
        assert_eq!(after(50, 60, 40), 50, "nothing was said of pages 50 to 60");
        assert_eq!(after(50, 40, 20), 60);
        assert_eq!(after(60, 60, 40), 200, "what comes next begins at page 200");
        assert_eq!(after(200, 200, 99), 299);
        assert_eq!(after(200, 150, 500), u64::MAX, "all has been told");
        assert_eq!(after(60, 0, 10), 60);
    }

    #[test]
    fn an_agent_is_used_only_if_its_free_pages_may_read_as_zero_after_a_migration() {
        let good = Settings {
            version: VERSION,
            page_size: 4096,
            pages: 1000,
            flags: Settings::INIT_ON_ALLOC | Settings::INIT_ON_FREE,
        };
        assert_eq!(why_not(&good), None);
        for bad in [
            Settings { version: 2, ..good },
            Settings {
                page_size: 65536,
                ..good
            },
            Settings {
                flags: Settings::POISON,
                ..good
            },
            Settings {
                flags: Settings::UNKNOWN,
                ..good
            },
        ] {
            assert!(why_not(&bad).is_some(), "{bad:?}");
        }
    }
}
