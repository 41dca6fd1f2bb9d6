// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the destination has: which of its pages may not be zero.

use spec::hint_map::{HintBits, Tellers};
use spec::sync::{AtomicU64, Ordering};

use crate::memory::words::zeros;

/// The pages that may not be zero at the destination, whose memory starts as zero.
///
/// Only the thread that sends changes it, so that no instruction is locked. What is asked together lies in one cache line.
#[derive(Debug)]
pub struct Delivered {
    /// For each 64 pages two words: those that the destination has content of, and those of them that were hinted after
    /// they had been sent and are counted already.
    pairs: Box<[AtomicU64]>,
}

impl Delivered {
    pub(super) fn new(pages: u64) -> Self {
        Self {
            pairs: zeros(2 * pages.div_ceil(64)),
        }
    }

    /// The pages of word `index` that the destination has content of.
    pub fn load(&self, index: usize) -> u64 {
        self.content(index).load(Ordering::Relaxed)
    }

    /// The destination gets the content of the pages `bits` of a word. Returns those that it has older content of.
    pub(super) fn send(&self, index: usize, bits: u64) -> u64 {
        let before = self.load(index);
        set(self.content(index), before, before | bits);
        // A hint may be too late for them again.
        let late = self.late(index).load(Ordering::Relaxed);
        set(self.late(index), late, late & !bits);
        before & bits
    }

    /// The pages `bits` of a word must read as zero. Returns those that must be made zero.
    pub(super) fn zero(&self, index: usize, bits: u64) -> u64 {
        let before = self.load(index);
        set(self.content(index), before, before & !bits);
        before & bits
    }

    /// Of the pages that were `told` to be free, those whose content the destination has, and that are not counted for
    /// it yet. They are from now on.
    pub(super) fn too_late(&self, index: usize, told: HintBits) -> HintBits {
        let late = self.late(index).load(Ordering::Relaxed);
        let told = told.of(Tellers::ALL, self.load(index) & !late);
        set(self.late(index), late, late | told.pages());
        told
    }

    fn content(&self, index: usize) -> &AtomicU64 {
        &self.pairs[2 * index]
    }

    fn late(&self, index: usize) -> &AtomicU64 {
        &self.pairs[2 * index + 1]
    }
}

/// Writes a word only if it changes.
fn set(word: &AtomicU64, before: u64, after: u64) {
    if after != before {
        word.store(after, Ordering::Relaxed);
    }
}
