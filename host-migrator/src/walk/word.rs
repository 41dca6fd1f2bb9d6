// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages of one word: claimed, but perhaps not all copied yet.

use spec::PageRange;

use super::batch::Batch;
use crate::memory::bitmap::runs_of_word;
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::rule::Claimed;

/// A word whose pages have been claimed. If its pages do not fit into what is sent next, copying stops in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    pub(super) index: usize,
    pub(super) claimed: Claimed,
    /// Pages that are not copied yet.
    left: u64,
    /// Pages that were found to be zero.
    pub(super) zero: u64,
}

impl Word {
    pub(super) fn new(index: usize, claimed: Claimed) -> Self {
        Self {
            index,
            claimed,
            left: claimed.rest,
            zero: 0,
        }
    }

    /// Copies pages into `batch` until it is full or all pages are copied. Returns whether all are copied. With
    /// `find_zeros`, zero pages are noted instead.
    pub(super) fn copy(
        &mut self,
        ram: &dyn GuestMemory,
        batch: &mut Batch,
        find_zeros: bool,
    ) -> Result<bool, RamError> {
        let base = self.index as u64 * 64;
        while let Some(run) = runs_of_word(base, self.left).next() {
            // A log may mark pages where there is no memory. They are ignored.
            let Some(piece) = ram.layout().pieces(run).next() else {
                self.left &= !bits(base, run);
                continue;
            };
            let count = piece.count().min(batch.space());
            let Some(part) = PageRange::new(piece.first(), count) else {
                return Ok(false);
            };
            self.zero |= batch.fill(ram, part, find_zeros)? << (part.first() - base);
            // There is no memory before the piece either.
            let done = PageRange::new(run.first(), part.end() - run.first());
            self.left &= !done.map_or(0, |done| bits(base, done));
        }
        Ok(true)
    }
}

/// The pages of `run`, at most 64 from page `base` on, as bits.
fn bits(base: u64, run: PageRange) -> u64 {
    (u64::MAX >> (64 - run.count())) << (run.first() - base)
}
