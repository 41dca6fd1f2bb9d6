// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is done with claimed pages, and what the destination has of them.

use alloc::format;

use super::pages::{Pages, bits_of, first_page};
use super::{Broken, Clause};
use crate::PageRange;
use crate::trace::PageBits;

/// The sender and the destination's memory, according to the sender.
#[derive(Debug, Default)]
pub(super) struct Sending {
    /// Pages that were claimed and not skipped or copied yet.
    in_hand: Pages,
    /// Pages whose content at the destination is not zero.
    content: Pages,
    /// Pages whose content there must become zero.
    stale: Pages,
    last_copy: Option<LastCopy>,
    /// Pages copied and not sent yet.
    unsent: u64,
    /// What is sent may be overtaken by what is sent later.
    several_channels: bool,
    /// Something was sent on several channels, and may not be at the destination yet.
    under_way: bool,
    /// The same of content only.
    pages_under_way: bool,
    /// Pages copied. A page that is copied twice counts twice.
    pub(super) copied: u64,
    /// Pages skipped. A page that is skipped twice counts twice.
    pub(super) skipped: u64,
}

/// The copied pages of a word, and which of them the destination had before.
#[derive(Clone, Copy, Debug)]
struct LastCopy {
    bits: PageBits,
    had: u64,
    /// Those that an early harvest had brought.
    early: u64,
}

impl Sending {
    pub(super) fn channels(&mut self, count: u64) {
        self.several_channels = count > 1;
    }

    pub(super) fn drained(&mut self) {
        self.under_way = false;
        self.pages_under_way = false;
    }

    /// Checks that nothing that is sent from now on can overtake what was sent before.
    pub(super) fn nothing_is_under_way(&self, when: &str) -> Result<(), Broken> {
        if self.under_way {
            let why = format!("{when}, and the channels are not drained");
            return Err((Clause::OnePageOneOrder, why));
        }
        Ok(())
    }

    /// Checks that a page that is discarded now cannot be overtaken by its content. Other discards may be under way.
    pub(super) fn no_page_is_under_way(&self) -> Result<(), Broken> {
        if self.pages_under_way {
            let why = "a page is discarded, and the channels are not drained".into();
            return Err((Clause::OnePageOneOrder, why));
        }
        Ok(())
    }

    pub(super) fn claim(&mut self, bits: PageBits) {
        self.in_hand.insert(bits);
    }

    pub(super) fn skip(&mut self, bits: PageBits) -> Result<(), Broken> {
        self.take(bits)?;
        self.skipped += u64::from(bits.mask.count_ones());
        let mask = bits.mask & self.content.word(bits.word);
        self.stale.insert(PageBits { mask, ..bits });
        Ok(())
    }

    /// `bits` are copied; an early harvest had brought `early` of them.
    pub(super) fn copy(&mut self, bits: PageBits, early: u64) -> Result<(), Broken> {
        self.take(bits)?;
        let under_way = bits.mask & self.stale.word(bits.word);
        if under_way != 0 {
            let page = first_page(bits.word, under_way);
            let why = format!("a record that makes page {page:#x} zero could arrive after it");
            return Err((Clause::ReadsAsZero, why));
        }
        let had = self.content.word(bits.word);
        self.last_copy = Some(LastCopy { bits, had, early });
        self.content.insert(bits);
        let count = u64::from(bits.mask.count_ones());
        self.unsent += count;
        self.copied += count;
        Ok(())
    }

    /// The pages `bits` of the last copy are taken for holes. That is wrong for a page written after the search for holes.
    pub(super) fn hole_taken(&self, bits: PageBits) -> Result<(), Broken> {
        let written = bits.mask & self.last_copy(bits)?.early;
        if written != 0 {
            let page = first_page(bits.word, written);
            let why = format!("page {page:#x} was written after the migrator asked for holes");
            return Err((Clause::HarvestEverything, why));
        }
        Ok(())
    }

    /// The pages `bits` of the last copy are zero.
    pub(super) fn zero(&mut self, bits: PageBits) -> Result<(), Broken> {
        let PageBits { word, mask } = bits;
        let copy = self.last_copy(bits)?;
        self.unsent = self.unsent.saturating_sub(mask.count_ones().into());
        let (stale, clean) = (mask & copy.had, mask & !copy.had);
        self.content.remove(PageBits { word, mask: clean });
        self.stale.insert(PageBits { word, mask: stale });
        Ok(())
    }

    pub(super) fn pages_sent(&mut self, count: u64) -> Result<(), Broken> {
        self.unsent = self.unsent.checked_sub(count).ok_or_else(|| {
            let why = format!("only {} pages have been copied", self.unsent);
            (Clause::ClaimBeforeCopy, why)
        })?;
        self.under_way |= self.several_channels;
        self.pages_under_way |= self.several_channels;
        Ok(())
    }

    /// The old content of `bits` at the destination is not needed any more.
    pub(super) fn late_discard(&mut self, bits: PageBits) {
        let mask = bits.mask & self.content.word(bits.word);
        self.stale.insert(PageBits { mask, ..bits });
    }

    pub(super) fn made_zero(&mut self, range: PageRange) -> Result<(), Broken> {
        for bits in bits_of(range) {
            let needed = bits.mask & self.content.word(bits.word) & !self.stale.word(bits.word);
            if needed != 0 {
                let page = first_page(bits.word, needed);
                let why = format!("page {page:#x} has content that the destination needs");
                return Err((Clause::ReadsAsZero, why));
            }
            self.stale.remove(bits);
            self.content.remove(bits);
        }
        self.under_way |= self.several_channels;
        Ok(())
    }

    /// Checks that every claimed page was sent or skipped.
    pub(super) fn all_is_sent(&self, when: &str) -> Result<(), Broken> {
        if let Some(page) = self.in_hand.first() {
            let why =
                format!("{when}, and page {page:#x} was claimed but neither sent nor skipped");
            return Err((Clause::ClaimBeforeCopy, why));
        }
        if self.unsent > 0 {
            let why = format!("{when}, and {} pages were copied but not sent", self.unsent);
            return Err((Clause::ClaimBeforeCopy, why));
        }
        if let Some(page) = self.stale.first() {
            let why = format!("{when}, and page {page:#x} has old content at the destination");
            return Err((Clause::ReadsAsZero, why));
        }
        Ok(())
    }

    /// The last copy, if it covers all of `bits`.
    fn last_copy(&self, bits: PageBits) -> Result<LastCopy, Broken> {
        let has = |copy: &LastCopy| copy.bits.word == bits.word && bits.mask & !copy.bits.mask == 0;
        self.last_copy.filter(has).ok_or_else(|| {
            let why = "these are not the pages that were copied last";
            (Clause::ClaimBeforeCopy, why.into())
        })
    }

    fn take(&mut self, bits: PageBits) -> Result<(), Broken> {
        let missing = bits.mask & !self.in_hand.word(bits.word);
        if missing != 0 {
            let page = first_page(bits.word, missing);
            let why = format!("page {page:#x} has not been claimed");
            return Err((Clause::ClaimBeforeCopy, why));
        }
        self.in_hand.remove(bits);
        Ok(())
    }
}
