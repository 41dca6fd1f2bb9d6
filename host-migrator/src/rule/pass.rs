// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an open epoch knows about pages: which are pending, and which of these need not be sent.

use std::fmt;

use spec::hint_map::{HintBits, HintPhase, Tellers};
use spec::trace::{Event, PageBits};

use super::delivered::Delivered;
use super::known_holes::KnownHoles;
use crate::memory::bitmap::{Cursor, MigrationBitmap};
use crate::report::page_source::Reason;
use crate::report::trace::Trace;
use crate::vm::hint_source::HintSource;

/// A view of the pages that are pending in the open epoch, or with the guest stopped.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub(super) bitmap: &'a MigrationBitmap,
    pub(super) early: &'a MigrationBitmap,
    pub(super) early_copied: &'a MigrationBitmap,
    pub(super) keep_early: bool,
    pub(super) hints: Option<&'a dyn HintSource>,
    pub(super) tellers: Tellers,
    pub(super) free_before: Option<&'a MigrationBitmap>,
    pub(super) delivered: &'a Delivered,
    pub(super) holes: Option<&'a KnownHoles>,
    pub(super) trace: &'a Trace,
}

/// The claimed pages of a 64-page word: they were pending and are not any more. Each set is bits of that word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claimed {
    /// All of them.
    pub pages: u64,
    /// Those that the guest has said to be free: they are not sent.
    pub hinted: HintBits,
    /// Of the hinted pages, those whose content the destination has: it must make them zero.
    pub stale: u64,
    /// Those that read as zero because they are holes of their memory file.
    pub holes: u64,
    /// The others: the caller copies them, sends them or finds them to be zero, and then calls [`Pass::copied`].
    pub rest: u64,
    /// Of [`Claimed::rest`], those that were written in this round, as far as early harvests have found them. The copy
    /// has these writes.
    pub written: u64,
}

impl fmt::Debug for Pass<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass")
            .field("pending", &self.bitmap.count())
            .field("guest", &self.guest())
            .finish_non_exhaustive()
    }
}

impl<'a> Pass<'a> {
    /// The pages to be sent.
    pub fn bitmap(&self) -> &'a MigrationBitmap {
        self.bitmap
    }

    /// The words with pending pages, ascending, at the time when the iterator reaches them.
    pub fn words(&self) -> impl Iterator<Item = usize> {
        let mut cursor = Cursor::from_word(0);
        std::iter::from_fn(move || self.next(&mut cursor))
    }

    /// The next word with pending pages in the walk that is at `cursor`.
    pub(crate) fn next(&self, cursor: &mut Cursor) -> Option<usize> {
        // What a claim reads.
        let ahead = |index| {
            let free = self.free_before.map_or(0, |free| free.load_marked(index));
            free | self.delivered.load(index) | self.hints(index, u64::MAX).pages()
        };
        self.bitmap.next(cursor, ahead)
    }

    /// Takes the pending pages `mask` of word `index` out of the bitmap, and says what is known of them. Claim before
    /// copy, always: a write after the claim is in a log.
    pub fn claim(&self, index: usize, mask: u64) -> Claimed {
        let pages = match mask {
            u64::MAX => self.bitmap.claim(index),
            _ => self.bitmap.clear(index, mask),
        };
        if pages == 0 {
            return Claimed::default();
        }
        self.record(index, pages, Event::Claim);
        let hinted = self.hints(index, pages);
        let free = hinted.pages();
        let mut stale = 0;
        if free != 0 {
            // A skipped page stays early, because it is not known whether the hint or the write was first.
            if !self.keep_early {
                self.early.clear(index, free);
            }
            self.record(index, free, Event::Skip);
            stale = self.delivered.zero(index, free);
        }
        let others = pages & !free;
        self.record(index, others, Event::Copy);
        // A copied page does not, because the copy is made after the page was armed again.
        let written = self.early.clear(index, others);
        if written != 0 {
            self.early_copied.merge(index, written);
        }
        let holes = self
            .holes
            .map_or(0, |known| known.of(index, others & !written));
        self.record(index, holes, Event::HoleTaken);
        Claimed {
            pages,
            hinted,
            stale,
            holes,
            rest: others & !holes,
            written,
        }
    }

    /// Word `index` was `claimed`, and of [`Claimed::rest`] the pages `zero` were found to be zero. The others are sent to
    /// the destination before any page is claimed again.
    pub fn copied(&self, index: usize, claimed: &Claimed, zero: u64) -> Copied {
        let all_zero = zero | claimed.holes;
        self.record(index, all_zero, Event::Zero);
        Copied {
            resent: self.delivered.send(index, claimed.rest & !zero),
            stale: self.delivered.zero(index, all_zero),
        }
    }

    /// Why `holes`, some of [`Claimed::holes`], are holes: the sources that they count for.
    pub(crate) fn reasons(&self, index: usize, holes: u64) -> impl Iterator<Item = (Reason, u64)> {
        let reasons = self.holes.map(|known| known.reasons(index, holes));
        reasons.into_iter().flatten()
    }

    /// The pages that were free in the last epoch, if there was one. They are likely to be free again.
    pub fn free_before(&self) -> Option<&'a MigrationBitmap> {
        self.free_before
    }

    /// For every page below this one it is known whether it is free.
    pub(crate) fn answered(&self) -> u64 {
        let hints = self.hints.filter(|_| self.tellers.agent);
        hints.map_or(0, HintSource::answered)
    }

    /// How many pages from word `index` on are to be sent, and need not be as they are hinted.
    pub(crate) fn removed_from(&self, index: usize) -> u64 {
        let words = self.bitmap.occupied_from(index);
        words
            .map(|index| u64::from(self.hinted(index).count_ones()))
            .sum()
    }

    /// The pages of word `index` that are to be sent, and need not be as they are hinted.
    pub(crate) fn hinted(&self, index: usize) -> u64 {
        self.hints(index, self.bitmap.load(index)).pages()
    }

    /// How far the guest is, and how many pages it has hinted.
    pub fn guest(&self) -> (HintPhase, u64) {
        self.hints.map_or((HintPhase::Closed, 0), |hints| {
            (hints.phase(), hints.hinted_pages())
        })
    }

    /// Those of the pages `mask` of a word that are hinted to be free.
    fn hints(&self, index: usize, mask: u64) -> HintBits {
        let told = self.hints.map(|hints| hints.load(index));
        told.unwrap_or_default().of(self.tellers, mask)
    }

    /// Of the pages of word `index` that the destination has content of and that are not pending, those that the guest has
    /// hinted since. Their content is not needed, so they count as zero there from now on: the caller sees to it.
    pub(super) fn discard_late(&self, index: usize, spare_early_copies: bool) -> HintBits {
        let mut mask = self.delivered.load(index) & !self.bitmap.load(index);
        if spare_early_copies {
            // The hint may be older than the write that the copy has, and no log has that write any more.
            mask &= !self.early_copied.load(index);
        }
        if mask == 0 {
            return HintBits::default();
        }
        let hinted = self.hints(index, mask);
        self.record(index, hinted.pages(), Event::LateDiscard);
        self.delivered.zero(index, hinted.pages());
        hinted
    }

    /// Calls `found` with each word that may have hints.
    pub(super) fn hinted_words(&self, found: &mut dyn FnMut(usize)) {
        if let Some(hints) = self.hints {
            // A device may report more pages than the guest has.
            let words = self.bitmap.word_count();
            hints.hinted_words(&mut |index| {
                if index < words {
                    found(index);
                }
            });
        }
    }

    /// Records what happens to the pages `mask` of a word, if there are any.
    fn record(&self, index: usize, mask: u64, event: fn(PageBits) -> Event) {
        if mask != 0 {
            let word = index as u64;
            self.trace.record(event(PageBits { word, mask }));
        }
    }
}

/// What [`Pass::copied`] knows of the destination. Each set is bits of the word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Copied {
    /// Pages with content whose older content the destination has.
    pub resent: u64,
    /// Zero pages whose older content the destination has: it must make them zero.
    pub stale: u64,
}
