// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space. The guest reads its target and the command id of the open epoch there. It writes the size of
//! its balloon and the value with which it fills free pages.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::balloon::{CONFIG_SIZE, Command, Config};

use super::config_channel::ConfigChannel;

/// If the guest has not read for this long, it has finished reading a change. A driver reads more than once: it has one
/// task for the target and another for the hints, which read a moment apart.
const QUIET: Duration = Duration::from_millis(50);

/// The configuration space, and whether the guest knows its last change.
#[derive(Debug)]
pub struct ConfigSpace {
    channel: Arc<ConfigChannel>,
    /// The fields, without the command id, which [`crate::hints`] has.
    config: Config,
    /// The guest has not been told of the last change.
    is_untold: bool,
    last_told: LastTold,
}

/// The state of the last change that the guest was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastTold {
    /// There was none.
    Nothing,
    /// The guest has not read it yet.
    Unread,
    /// It read last at this time.
    Read(Instant),
}

impl ConfigSpace {
    /// All zero. The guest is told of changes through `channel`.
    pub fn new(channel: Arc<ConfigChannel>) -> Self {
        Self {
            channel,
            config: Config::default(),
            is_untold: false,
            last_told: LastTold::Nothing,
        }
    }

    /// The configuration, without the command id.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The guest reads it, with `command` as the command id.
    pub fn read(&mut self, command: Command) -> [u8; CONFIG_SIZE] {
        if self.last_told != LastTold::Nothing {
            self.last_told = LastTold::Read(Instant::now());
        }
        self.bytes(command)
    }

    /// As the guest would read it, with `command` as the command id.
    pub fn bytes(&self, command: Command) -> [u8; CONFIG_SIZE] {
        Config {
            free_page_hint_cmd_id: command.to_raw(),
            ..self.config
        }
        .to_bytes()
    }

    /// Whether the guest has been told of a change that it has not read yet, or is still reading.
    pub fn is_change_unread(&self) -> bool {
        match self.last_told {
            LastTold::Nothing => false,
            LastTold::Unread => true,
            LastTold::Read(last) => last.elapsed() < QUIET,
        }
    }

    /// The guest, or the front end for it, writes `written` at `offset`. Fields that the guest cannot change stay as
    /// they are: some front ends write the whole space back. Bytes past the end have no effect.
    pub fn write(&mut self, offset: u32, written: &[u8]) {
        let config = self.with(offset, written);
        self.set_by_guest(config.actual, config.poison_val);
    }

    /// As [`ConfigSpace::write`], but for a front end that brings a migrated guest: the host's fields are taken, too,
    /// except the command id, which is part of the device's state. Returns the new target, if it has changed.
    pub fn restore(&mut self, offset: u32, written: &[u8]) -> Option<u32> {
        let asked_for = self.with(offset, written).num_pages;
        self.write(offset, written);
        self.set_target(asked_for).then_some(asked_for)
    }

    /// Sets the guest's fields: the pages in its balloon, and the value with which it fills free pages.
    pub fn set_by_guest(&mut self, actual: u32, poison_val: u32) {
        self.config.actual = actual;
        self.config.poison_val = poison_val;
    }

    /// Asks for `pages` pages. Returns whether that is a change.
    pub fn set_target(&mut self, pages: u32) -> bool {
        std::mem::replace(&mut self.config.num_pages, pages) != pages
    }

    /// Whether the guest has not been told of the last change.
    pub fn is_untold(&self) -> bool {
        self.is_untold
    }

    /// Whether the guest must be told of the last change through a new channel, because it was not told of it or has
    /// not read it.
    pub fn is_to_be_told_again(&self) -> bool {
        self.is_untold || self.last_told == LastTold::Unread
    }

    /// Notes that the guest must be told of a change later.
    pub fn tell_later(&mut self) {
        self.is_untold = true;
    }

    /// Tells the guest of a change now. Returns `false` if its front end cannot be told.
    pub fn tell_now(&mut self) -> bool {
        let again = std::mem::replace(&mut self.is_untold, true);
        match self.channel.config_changed() {
            Ok(()) => {
                self.is_untold = false;
                self.last_told = LastTold::Unread;
            }
            // Logged once, because the guest can make the device try again without limit.
            Err(error) if !again => log::warn!("the guest cannot be told of a change: {error}"),
            Err(_) => {}
        }
        !self.is_untold
    }

    /// The front end has hung up. The guest's fields are kept: the same guest may connect again, and would not write
    /// them again.
    pub fn front_end_gone(&self) {
        self.channel.clear();
    }

    /// The configuration with `written` at `offset`.
    fn with(&self, offset: u32, written: &[u8]) -> Config {
        let mut bytes = self.config.to_bytes();
        let field = bytes.iter_mut().skip(offset as usize);
        field.zip(written).for_each(|(byte, new)| *byte = *new);
        Config::from_bytes(&bytes)
    }
}
