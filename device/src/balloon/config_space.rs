// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space. The guest reads its target and the command id of the open epoch there. It writes the size of
//! its balloon and the value with which it fills free pages.

use std::time::{Duration, Instant};

use spec::balloon::{CONFIG_SIZE, Config};

use super::Balloon;

/// After this long without a read, the guest has read all it wants. A driver reads more than once: it has one task for
/// the target and another for the hints, which read a moment apart.
const QUIET: Duration = Duration::from_millis(50);

/// What has become of the last change that the guest was told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum News {
    /// There was none.
    #[default]
    None,
    /// The guest has not read it yet.
    Unread,
    /// It read last at this time.
    Read(Instant),
}

impl Balloon {
    /// The guest reads the configuration space.
    pub fn read_config(&mut self) -> [u8; CONFIG_SIZE] {
        if self.news != News::None {
            self.news = News::Read(Instant::now());
        }
        self.config_bytes()
    }

    /// Whether the guest has been told of a change that it has not read yet, or is still reading.
    pub fn has_news(&self) -> bool {
        match self.news {
            News::None => false,
            News::Unread => true,
            News::Read(last) => last.elapsed() < QUIET,
        }
    }

    /// The configuration space as the guest would read it.
    pub fn config_bytes(&self) -> [u8; CONFIG_SIZE] {
        Config {
            free_page_hint_cmd_id: self.hinting.command().to_raw(),
            ..self.config
        }
        .to_bytes()
    }

    /// The guest, or the front end for it, writes to the configuration space. What the guest cannot change
    /// stays as it is: some front ends write the whole space back. Bytes past its end have no effect.
    pub fn write_config(&mut self, offset: u32, written: &[u8]) {
        let config = self.config_with(offset, written);
        self.config.actual = config.actual;
        self.config.poison_val = config.poison_val;
    }

    /// As [`Balloon::write_config`], but for a front end that brings a migrated guest: what only the host changes
    /// is taken too, but for the command id, which is part of the device's state.
    pub fn restore_config(&mut self, offset: u32, written: &[u8]) {
        let asked_for = self.config_with(offset, written).num_pages;
        self.write_config(offset, written);
        if asked_for != self.config.num_pages {
            self.target.restore(asked_for, asked_for);
            self.config.num_pages = asked_for;
        }
    }

    /// The configuration space as it would be with `written` at `offset`.
    fn config_with(&self, offset: u32, written: &[u8]) -> Config {
        let mut bytes = self.config_bytes();
        let field = bytes.iter_mut().skip(offset as usize);
        field.zip(written).for_each(|(byte, new)| *byte = *new);
        Config::from_bytes(&bytes)
    }

    /// The front end has given a socket for configuration changes: the guest is told of the last one, if it has not
    /// been or has not read it.
    pub fn channel_came(&mut self) {
        if self.guest_to_be_told || self.news == News::Unread {
            self.tell_guest();
        }
    }

    /// Tells the guest that its configuration has changed, or will when its rings run again: some front ends
    /// do not survive such a message before that. `false` if the front end cannot be told.
    pub(crate) fn tell_guest(&mut self) -> bool {
        let again = std::mem::replace(&mut self.guest_to_be_told, true);
        if !self.is_running() {
            return true;
        }
        match self.channel.config_changed() {
            Ok(()) => {
                self.guest_to_be_told = false;
                self.news = News::Unread;
            }
            // Said once: the guest makes the device try again as often as it likes.
            Err(error) if !again => log::warn!("the guest cannot be told of a change: {error}"),
            Err(_) => {}
        }
        !self.guest_to_be_told
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::balloon::options::Options;

    #[test]
    fn a_target_that_a_front_end_restores_is_what_is_wanted_from_then_on() {
        let mut balloon = Balloon::new(Options::default(), Arc::default());
        balloon.set_target(9);
        balloon.restore_config(0, &[9, 0, 0, 0, 5]);
        assert_eq!(
            (balloon.wanted(), balloon.target(), balloon.actual()),
            (9, 9, 5)
        );
        balloon.restore_config(0, &[4, 0, 0, 0]);
        balloon.publish_target();
        assert_eq!(
            (balloon.wanted(), balloon.target(), balloon.actual()),
            (4, 4, 5)
        );
        let before = balloon.config_bytes();
        balloon.restore_config(16, &[7; 4]);
        assert_eq!(balloon.config_bytes(), before);
    }
}
