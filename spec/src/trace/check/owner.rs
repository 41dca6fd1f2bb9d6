// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs the guest: never two, and never one that has given it away.

use alloc::collections::BTreeSet;
use alloc::format;

use super::{Broken, Clause};
use crate::trace::Event;

/// The hosts, as far as they have, give or take the guest.
#[derive(Debug, Default)]
pub(super) struct Owner {
    running: BTreeSet<u16>,
    /// Loaded, and not theirs yet.
    waiting: BTreeSet<u16>,
    /// Gave the guest away: they never run it again.
    former: BTreeSet<u16>,
    /// Said that it hands over; the word has not been taken by anybody.
    giving: Option<u16>,
}

impl Owner {
    pub(super) fn replay(&mut self, host: u16, event: Event) -> Result<(), Broken> {
        let broken = |why| Err((Clause::OneOwner, why));
        match event {
            Event::Run => {
                if let Some(other) = self.running.iter().find(|other| **other != host) {
                    return broken(format!("host {other} runs the guest, too"));
                }
                if self.former.contains(&host) || self.giving == Some(host) {
                    return broken("this host has handed the guest over".into());
                }
                if self.waiting.contains(&host) {
                    return broken("the source has not handed the guest over yet".into());
                }
                self.running.insert(host);
            }
            Event::Stopped => {
                self.running.remove(&host);
            }
            Event::HandOver => {
                if self.running.contains(&host) {
                    return broken("the guest still runs here".into());
                }
                self.giving = Some(host);
            }
            Event::HandOverVoid => {
                self.giving = self.giving.filter(|giver| *giver != host);
            }
            Event::Loaded => {
                self.waiting.insert(host);
            }
            Event::TakenOver => {
                let Some(giver) = self.giving.take() else {
                    return broken("nobody has handed the guest over".into());
                };
                self.former.insert(giver);
                self.waiting.remove(&host);
            }
            _ => {}
        }
        Ok(())
    }
}
