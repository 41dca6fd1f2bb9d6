// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the destination has: which of its pages may not be zero.

use spec::hint_map::{HintBits, Tellers};

use crate::memory::bitmap::MigrationBitmap;

/// The pages that may not be zero at the destination, whose memory starts as zero.
#[derive(Debug)]
pub struct Delivered {
    content: MigrationBitmap,
    /// Those of them that were hinted after they had been sent and are counted already.
    late: MigrationBitmap,
}

impl Delivered {
    pub(super) fn new(pages: u64) -> Self {
        Self {
            content: MigrationBitmap::new(pages),
            late: MigrationBitmap::new(pages),
        }
    }

    /// The pages of word `index` that the destination has content of.
    pub fn load(&self, index: usize) -> u64 {
        self.content.load(index)
    }

    /// The destination gets the content of the pages `bits` of a word. Returns those that it has older content of.
    pub(super) fn send(&self, index: usize, bits: u64) -> u64 {
        let before = self.content.load(index) & bits;
        self.content.merge(index, bits);
        // A hint may be too late for them again.
        self.late.clear(index, bits);
        before
    }

    /// The pages `bits` of a word must read as zero. Returns those that must be made zero.
    pub(super) fn zero(&self, index: usize, bits: u64) -> u64 {
        self.content.clear(index, bits)
    }

    /// Of the pages that were `told` to be free, those whose content the destination has, and that are not counted for
    /// it yet. They are from now on.
    pub(super) fn too_late(&self, index: usize, told: HintBits) -> HintBits {
        let new = self.content.load(index) & !self.late.load(index);
        let told = told.of(Tellers::ALL, new);
        self.late.merge(index, told.pages());
        told
    }
}
