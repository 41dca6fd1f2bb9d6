// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who runs the guest: never two hosts, and never a host that has given it away.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;

use super::{Broken, Clause};
use crate::trace::Event;

/// Which hosts have the guest, give it away or wait for it.
#[derive(Debug, Default)]
pub(super) struct Owner {
    running: BTreeSet<u16>,
    /// Hosts that have loaded the guest and do not own it yet.
    waiting: BTreeSet<u16>,
    /// Hosts that gave the guest away. They never run it again.
    former: BTreeSet<u16>,
    /// The host that hands the guest over, until another takes it.
    giving: Option<u16>,
    /// The host for which an operator has decided.
    chosen: Option<u16>,
    /// Hosts that load their guest from a file.
    restoring: BTreeSet<u16>,
    /// Which guest a host has, if it is not the first. Every restore makes another one.
    guests: BTreeMap<u16, u32>,
    restored: u32,
}

impl Owner {
    pub(super) fn replay(&mut self, host: u16, event: Event) -> Result<(), Broken> {
        let broken = |why| Err((Clause::OneOwner, why));
        match event {
            Event::Run => {
                if let Some(other) = self.runs_elsewhere(host) {
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
            Event::Restoring => self.restoring(host)?,
            Event::TakenOver if self.restoring.remove(&host) => {
                self.waiting.remove(&host);
            }
            Event::TakenOver => {
                match (self.giving.take(), self.chosen) {
                    (Some(giver), _) => {
                        self.former.insert(giver);
                        self.guests.insert(host, self.guest(giver));
                    }
                    (None, Some(chosen)) if chosen == host => {}
                    (None, Some(chosen)) => {
                        return broken(format!("an operator has decided for host {chosen}"));
                    }
                    (None, None) => return broken("nobody has handed the guest over".into()),
                }
                self.chosen = None;
                self.waiting.remove(&host);
            }
            Event::Decided => self.decided(host)?,
            _ => {}
        }
        Ok(())
    }

    fn runs_elsewhere(&self, host: u16) -> Option<u16> {
        let guest = self.guest(host);
        let mut hosts = self.running.iter().copied();
        hosts.find(|other| *other != host && self.guest(*other) == guest)
    }

    fn guest(&self, host: u16) -> u32 {
        self.guests.get(&host).copied().unwrap_or(0)
    }

    /// `host` loads the guest of a snapshot. That is a copy: the guest that was saved may run on, and other copies too.
    fn restoring(&mut self, host: u16) -> Result<(), Broken> {
        if self.running.contains(&host) || self.giving == Some(host) {
            let why = "this host has a guest already";
            return Err((Clause::OneOwner, why.into()));
        }
        self.restored += 1;
        self.guests.insert(host, self.restored);
        self.former.remove(&host);
        self.restoring.insert(host);
        Ok(())
    }

    /// An operator decides for `host`: no other host runs the guest from now on.
    fn decided(&mut self, host: u16) -> Result<(), Broken> {
        if let Some(other) = self.runs_elsewhere(host) {
            let why = format!("an operator decides for a host, and host {other} runs the guest");
            return Err((Clause::OneOwner, why));
        }
        self.former.append(&mut self.waiting);
        self.former.extend(self.giving.take());
        self.former.remove(&host);
        self.chosen = Some(host);
        Ok(())
    }
}
