// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The epochs of one migration, and what was hinted in the open one.

use alloc::format;

use super::pages::{Pages, first_page};
use super::{Broken, Clause};
use crate::trace::PageBits;
use crate::trace::event::Hinted;

/// The hints, according to migrator and device.
#[derive(Debug, Default)]
pub(super) struct Hints {
    epoch: Epoch,
    /// Pages hinted in the open epoch, or in the closed epoch whose hints are not forgotten yet.
    hinted: Pages,
    /// Epochs opened.
    pub(super) opened: u64,
    /// Pages hinted. A page that is hinted twice counts twice.
    pub(super) pages: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Epoch {
    /// No epoch is open, and all hints are forgotten.
    #[default]
    None,
    /// Open; the device may have closed it already.
    Open { epoch: u64, closed_by_device: bool },
    /// Closed, but its hints are still in the map.
    Standing(u64),
    /// Hints are no longer used.
    Lost,
}

impl Hints {
    /// The epoch that is open.
    pub(super) fn open_epoch(&self) -> Option<u64> {
        match self.epoch {
            Epoch::Open { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// Whether hints were given up.
    pub(super) fn are_lost(&self) -> bool {
        self.epoch == Epoch::Lost
    }

    pub(super) fn lose(&mut self) {
        self.hinted.clear();
        self.epoch = Epoch::Lost;
    }

    pub(super) fn open(&mut self, epoch: u64) -> Result<(), Broken> {
        let why = match self.epoch {
            Epoch::None => {
                self.epoch = Epoch::Open {
                    epoch,
                    closed_by_device: false,
                };
                self.opened += 1;
                return Ok(());
            }
            Epoch::Open { epoch, .. } => format!("epoch {epoch} is still open"),
            Epoch::Standing(old) => format!("the hints of epoch {old} are still in the map"),
            Epoch::Lost => return Err((Clause::Order, "hints were given up".into())),
        };
        Err((Clause::CloseBeforeHarvest, why))
    }

    pub(super) fn published(&self, published: u64) -> Result<(), Broken> {
        match self.epoch {
            Epoch::Open { epoch, .. } if epoch == published => Ok(()),
            // The migrator has given the device up; the device may still be closing.
            Epoch::Lost => Ok(()),
            _ => {
                let why = "the migrator has not opened this epoch, or has closed it";
                Err((Clause::CloseBeforeHarvest, why.into()))
            }
        }
    }

    pub(super) fn hint(&mut self, hint: Hinted) -> Result<(), Broken> {
        let in_time = Epoch::Open {
            epoch: hint.epoch,
            closed_by_device: false,
        };
        if self.epoch == in_time {
            self.hinted.insert_range(hint.pages);
            self.pages += hint.pages.count();
        } else if !self.are_lost() {
            let why = format!("epoch {} is not open", hint.epoch);
            return Err((Clause::CloseBeforeHarvest, why));
        }
        Ok(())
    }

    pub(super) fn device_closed(&mut self, closed: u64) {
        if self.open_epoch() == Some(closed) {
            self.epoch = Epoch::Open {
                epoch: closed,
                closed_by_device: true,
            };
        }
    }

    pub(super) fn closed(&mut self, closed: u64) -> Result<(), Broken> {
        if self.open_epoch() != Some(closed) {
            return Err((Clause::Order, "this epoch is not open".into()));
        }
        self.epoch = Epoch::Standing(closed);
        Ok(())
    }

    pub(super) fn forgotten(&mut self) -> Result<(), Broken> {
        match self.epoch {
            Epoch::Open { epoch, .. } => {
                let why = format!("epoch {epoch} is still open, and more of its hints may come");
                return Err((Clause::CloseBeforeHarvest, why));
            }
            Epoch::Standing(_) => self.epoch = Epoch::None,
            Epoch::None | Epoch::Lost => {}
        }
        self.hinted.clear();
        Ok(())
    }

    /// A harvest brings writes that may be later than every hint before it, so none of these may be used afterwards.
    pub(super) fn none_stands(&self) -> Result<(), Broken> {
        let why = match self.epoch {
            Epoch::None | Epoch::Lost => return Ok(()),
            Epoch::Open { epoch, .. } => {
                format!("epoch {epoch} is open: a hint older than a harvested write could be used")
            }
            Epoch::Standing(epoch) => {
                format!(
                    "the hints of epoch {epoch} are still in the map, and may be older than a harvested write"
                )
            }
        };
        Err((Clause::CloseBeforeHarvest, why))
    }

    /// All of `bits` were hinted in the epoch that is open, or whose hints are not forgotten yet.
    pub(super) fn cover_late(&self, bits: PageBits) -> Result<(), Broken> {
        let stray = match self.epoch {
            Epoch::Open { .. } | Epoch::Standing(_) => bits.mask & !self.hinted.word(bits.word),
            Epoch::None | Epoch::Lost => bits.mask,
        };
        if stray == 0 {
            return Ok(());
        }
        let page = first_page(bits.word, stray);
        let why = format!("page {page:#x} has not been hinted since the last harvest");
        Err((Clause::CloseBeforeHarvest, why))
    }

    /// All of `bits` were hinted in the epoch that is open.
    pub(super) fn cover(&self, bits: PageBits) -> Result<(), Broken> {
        let stray = match self.epoch {
            Epoch::Open { .. } => bits.mask & !self.hinted.word(bits.word),
            _ => bits.mask,
        };
        if stray == 0 {
            return Ok(());
        }
        let page = first_page(bits.word, stray);
        let why = match self.epoch {
            Epoch::Open { epoch, .. } => {
                format!("page {page:#x} has not been hinted in epoch {epoch}")
            }
            _ => format!("page {page:#x} is skipped, and no epoch is open"),
        };
        Err((Clause::CloseBeforeHarvest, why))
    }
}
