// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's agent as a source of hints: whether it can be asked, and the state of its answer.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use spec::agent::{Ask, Settings, VERSION};
use spec::balloon::CommandId;
use spec::hint_map::HintPhase;
use spec::{PAGE_SIZE, PageRange};

/// If the agent reports nothing for this long, the driver is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of the agent.
#[derive(Debug, Default)]
pub struct Agent {
    /// The host's end of its port, as long as a connection is there.
    port: Option<Arc<UnixStream>>,
    /// What it has said about its kernel.
    settings: Option<Settings>,
    progress: Progress,
    /// How many more pages the answer may cover. An honest answer covers each page once.
    left: u64,
    /// It has reported all free pages below this one.
    told_to: u64,
    /// When it was asked, or last sent a map since then.
    heard: Option<Instant>,
}

/// How far the agent is with its answer to the open epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// It is not asked, or its answer is complete.
    #[default]
    Over,
    Asked,
    Answering,
}

/// The agent reports the same pages again and again.
#[derive(Debug)]
pub struct RepeatsItself;

impl Agent {
    /// An agent that can be reached through `port`. It is asked who it is.
    pub fn at(port: Arc<UnixStream>) -> Self {
        let agent = Self {
            port: Some(port),
            ..Self::default()
        };
        agent.greet();
        agent
    }

    /// Sends it a Hello, which a living agent answers.
    pub fn greet(&self) {
        self.send(Ask::Hello);
    }

    /// It has said what its kernel is like. Returns whether that is new.
    pub fn introduce(&mut self, settings: Settings) -> bool {
        let is_new = self.settings != Some(settings);
        if is_new && let Some(why) = why_not(&settings) {
            log::warn!("the guest's agent is not asked for free pages: {why}");
        }
        self.settings = Some(settings);
        is_new
    }

    /// Whether there is an agent whose maps may be used.
    pub fn is_usable(&self) -> bool {
        self.port.is_some()
            && self
                .settings
                .is_some_and(|settings| why_not(&settings).is_none())
    }

    /// How far it is, in the terms of the driver's hints.
    pub fn phase(&self) -> HintPhase {
        match self.progress {
            Progress::Over => HintPhase::Finished,
            Progress::Asked => HintPhase::Requested,
            Progress::Answering => HintPhase::Running,
        }
    }

    /// Asks for a map of a guest with `pages` pages under `id`, in the `first` epoch of a migration or a later one.
    /// Returns whether it could be asked.
    pub fn ask_for(&mut self, id: CommandId, first: bool, pages: u64) -> bool {
        self.progress = Progress::Over;
        let epoch = tag(id);
        let asked = self.is_usable() && self.send(Ask::Map { epoch, first });
        if asked {
            self.progress = Progress::Asked;
            self.left = pages;
            self.told_to = 0;
            self.heard = Some(Instant::now());
        }
        asked
    }

    /// Whether it was asked and its answer is not complete.
    pub fn is_awaited(&self) -> bool {
        self.progress != Progress::Over
    }

    /// Until when its next map is awaited, if one is.
    pub fn awaited_until(&self) -> Option<Instant> {
        let heard = self.heard.filter(|_| self.is_awaited());
        heard.map(|heard| heard + PATIENCE)
    }

    /// It begins to tell of `pages` pages.
    ///
    /// # Errors
    /// [`RepeatsItself`] if there are not so many left. Nothing more is wanted of it then.
    pub fn begins_to_tell(&mut self, pages: u64) -> Result<(), RepeatsItself> {
        let Some(left) = self.left.checked_sub(pages) else {
            self.progress = Progress::Over;
            return Err(RepeatsItself);
        };
        self.left = left;
        self.heard = Some(Instant::now());
        self.progress = Progress::Answering;
        Ok(())
    }

    /// It has told all of `range`, of a guest whose memory is `regions`. Returns below which page it has told
    /// everything.
    pub fn has_told(&mut self, range: PageRange, regions: &[PageRange]) -> u64 {
        self.told_to = told_to(self.told_to, range, regions);
        self.told_to
    }

    /// Its answer is complete.
    pub fn has_ended(&mut self) {
        self.progress = Progress::Over;
    }

    /// Stops asking it.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.progress) != Progress::Over {
            self.send(Ask::Stop);
        }
    }

    /// Sends a request. An agent that does not accept so few bytes has stopped reading and is disconnected.
    fn send(&self, ask: Ask) -> bool {
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

/// The number of an epoch in the agent's frames. Those of the migrator begin anew with each migration, and a frame
/// of the one before may still be under way.
pub(super) fn tag(id: CommandId) -> u64 {
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
