// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages of one word on their way: claimed, and not all of them copied yet.

use spec::PageRange;

use super::batch::Batch;
use crate::memory::bitmap::runs_of_word;
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::rule::Claimed;

/// A word whose pages have been claimed. Its content may not fit what is sent next, so that copying stops in between.
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

    /// Copies pages into `batch`, until all are copied or it is full. Whether all are copied. With `find_zeros` those
    /// that are zero are noted instead.
    pub(super) fn copy(
        &mut self,
        ram: &dyn GuestMemory,
        batch: &mut Batch,
        find_zeros: bool,
    ) -> Result<bool, RamError> {
        let base = self.index as u64 * 64;
        while let Some(run) = runs_of_word(base, self.left).next() {
            // A log that marks pages where there is no memory has nothing to say.
            let Some(piece) = ram.layout().pieces(run).next() else {
                self.left &= !bits(base, run);
                continue;
            };
            let count = piece.count().min(batch.space());
            let Some(part) = PageRange::new(piece.first(), count) else {
                return Ok(false);
            };
            self.zero |= batch.fill(ram, part, find_zeros)? << (part.first() - base);
            // What lies before the piece is no memory either.
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
