// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that two hosts map in a local hand-over. Only the owner of the guest may change it.

use alloc::collections::BTreeSet;
use alloc::format;

use super::{Broken, Clause};
use crate::PageRange;
use crate::trace::Event;
use crate::trace::event::Outcome;

/// Who has lent memory to whom.
#[derive(Debug, Default)]
pub(super) struct Lent {
    /// The host that lends its memory, until the guest is taken over or stays there for certain.
    giver: Option<Giver>,
    /// Hosts that gave the guest away together with its memory.
    former: BTreeSet<u16>,
}

#[derive(Clone, Copy, Debug)]
struct Giver {
    host: u16,
    handed_over: bool,
}

impl Lent {
    pub(super) fn replay(&mut self, host: u16, event: Event) -> Result<(), Broken> {
        let lends = self.giver.is_some_and(|giver| giver.host == host);
        match event {
            Event::Lent => {
                self.giver = Some(Giver {
                    host,
                    handed_over: false,
                });
            }
            Event::HandOver | Event::HandOverVoid if lends => {
                self.giver = Some(Giver {
                    host,
                    handed_over: event == Event::HandOver,
                });
            }
            Event::End(Outcome::Failed | Outcome::Cancelled) | Event::Decided if lends => {
                self.giver = None;
            }
            Event::TakenOver => {
                self.former
                    .extend(self.giver.take().map(|giver| giver.host));
                self.former.remove(&host);
            }
            Event::Discarding(pages) => self.discarding(host, pages)?,
            _ => {}
        }
        Ok(())
    }

    fn discarding(&self, host: u16, pages: PageRange) -> Result<(), Broken> {
        let page = pages.first();
        let why = match self.giver {
            _ if self.former.contains(&host) => "that this host gave away with its guest",
            Some(giver) if giver.host == host && giver.handed_over => {
                "that this host has handed over with its guest"
            }
            Some(giver) if giver.host != host => "that is lent, and whose guest is not here",
            _ => return Ok(()),
        };
        Err((
            Clause::LentMemory,
            format!("page {page:#x} is discarded in memory {why}"),
        ))
    }
}
