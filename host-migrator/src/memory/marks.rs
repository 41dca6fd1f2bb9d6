// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which words of a map may have bits.

use spec::hint_map::bits_of;
use spec::sync::{AtomicU64, Ordering};

use super::words::zeros;

/// A mark for each word says whether it may have bits. A summary says the same of every 64 marks, which are a chunk.
///
/// A mark is set after the word. [`Marks::retire`] clears it and then looks at the word once more, so that no thread's bits
/// stay without a mark.
#[derive(Debug)]
pub(super) struct Marks {
    /// Bit `w` of `chunks[c]` is set if word `64 * c + w` may have bits.
    chunks: Box<[AtomicU64]>,
    /// Bit `c % 64` of `summary[c / 64]` is set if `chunks[c]` may have bits.
    summary: Box<[AtomicU64]>,
}

impl Marks {
    /// No marks, for `words` words.
    pub(super) fn new(words: u64) -> Self {
        Self {
            chunks: zeros(words.div_ceil(64)),
            summary: zeros(words.div_ceil(64 * 64)),
        }
    }

    /// The marks of `chunk`.
    pub(super) fn of(&self, chunk: usize) -> u64 {
        self.chunks[chunk].load(Ordering::Acquire)
    }

    /// Whether word `index` may have bits. That costs less than to read the word of a map with few bits: 64 marks are in
    /// one word, and a chunk without marks is not read.
    pub(super) fn may_have(&self, index: usize) -> bool {
        let chunk = index / 64;
        let summary = self.summary[chunk / 64].load(Ordering::Acquire);
        summary & (1 << (chunk % 64)) != 0 && self.of(chunk) & (1 << (index % 64)) != 0
    }

    /// Sets `marks` of `chunk`. Call it after the words were set.
    pub(super) fn set(&self, chunk: usize, marks: u64) {
        self.chunks[chunk].fetch_or(marks, Ordering::AcqRel);
        self.summary[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::AcqRel);
    }

    /// As [`Marks::set`], where no other thread has the map: without locked instructions.
    pub(super) fn set_alone(&mut self, chunk: usize, marks: u64) {
        raise(&self.chunks[chunk], marks);
        raise(&self.summary[chunk / 64], 1 << (chunk % 64));
    }

    /// The first chunk from `chunk` on that may have marks.
    pub(super) fn next_chunk(&self, chunk: usize) -> Option<usize> {
        let mut mask = u64::MAX << (chunk % 64);
        for (index, word) in self.summary.iter().enumerate().skip(chunk / 64) {
            let bits = word.load(Ordering::Acquire) & mask;
            if bits != 0 {
                return Some(index * 64 + bits.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// Clears the marks of `chunk`, except those whose words have bits, as `words` of the chunk say. Without marks, it clears the
    /// chunk in the summary, too.
    ///
    /// The marks are cleared before the words are looked at. A thread that sets a word meanwhile sets its mark either before
    /// that, and then the look at the word finds the bits, or afterwards. The same holds for the marks and the summary.
    pub(super) fn retire(&self, chunk: usize, words: &[AtomicU64]) {
        let marks = &self.chunks[chunk];
        let before = match marks.load(Ordering::Acquire) {
            0 => 0,
            _ => marks.swap(0, Ordering::AcqRel),
        };
        let with_bits = with_bits(words, before);
        if with_bits != 0 {
            return self.set(chunk, with_bits);
        }
        let (summary, bit) = (&self.summary[chunk / 64], 1 << (chunk % 64));
        summary.fetch_and(!bit, Ordering::AcqRel);
        if self.of(chunk) != 0 {
            summary.fetch_or(bit, Ordering::AcqRel);
        }
    }
}

/// Those of the words `marks` of a chunk that have bits.
fn with_bits(words: &[AtomicU64], marks: u64) -> u64 {
    let has_bits = |word: &AtomicU64| word.load(Ordering::Acquire) != 0;
    if marks == u64::MAX && !words.iter().any(has_bits) {
        // A whole chunk is looked at in one go.
        return 0;
    }
    bits_of(marks)
        .filter(|bit| has_bits(&words[*bit]))
        .fold(0, |found, bit| found | 1 << bit)
}

/// Sets `bits` of a word that no other thread writes.
pub(super) fn raise(word: &AtomicU64, bits: u64) {
    let before = word.load(Ordering::Relaxed);
    if bits & !before != 0 {
        word.store(before | bits, Ordering::Release);
    }
}
