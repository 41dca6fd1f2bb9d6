// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The hints themselves: the device sets bits in the planes, and the migrator reads and clears them.

use super::layout::{AGENT_ONLY_WORD, CHUNK_WORDS, HINTED_WORD, mark_words, summary_words};
use super::{HintBits, HintMap, Words};
use crate::PageRange;
use crate::sync::Ordering;

impl<W: Words> HintMap<W> {
    /// Device: sets the driver's hints for `range`, cut to the map's end. Returns how many of these pages were not hinted
    /// before. There must be one caller at a time, as for everything that the device writes; the device has a lock.
    pub fn insert(&self, range: PageRange) -> u64 {
        let told_twice = self.agent_only_pages() != 0;
        let added = self.insert_in(self.driver_plane(), range, |word| {
            // In most epochs there is no agent, and its plane need not be read.
            if told_twice {
                self.load_at(self.agent_plane() + word)
            } else {
                0
            }
        });
        self.raise(HINTED_WORD, added);
        added
    }

    /// Device: sets the agent's hints for `range`, cut to the map's end. Returns how many of these pages were not hinted
    /// before.
    pub fn insert_of_agent(&self, range: PageRange) -> u64 {
        let added = self.insert_in(self.agent_plane(), range, |word| {
            self.load_at(self.driver_plane() + word)
        });
        self.raise(AGENT_ONLY_WORD, added);
        self.raise(HINTED_WORD, added);
        added
    }

    /// Sets the bits of `range` in the plane that begins at word `plane`. Counts the pages that were neither in that plane
    /// nor in the word that `elsewhere` returns.
    fn insert_in(&self, plane: usize, range: PageRange, elsewhere: impl Fn(usize) -> u64) -> u64 {
        let Some(range) = PageRange::new(0, self.pages).and_then(|all| all.intersection(range))
        else {
            return 0;
        };
        let mut known = 0;
        // Summary, marks, planes: a device that dies in between leaves a superfluous mark, not a hint without one.
        let (first, last) = (range.first() / 64, (range.end() - 1) / 64);
        let words = PageRange::new(first, last - first + 1);
        for (chunk, marks) in words.into_iter().flat_map(word_masks) {
            self.set_in(self.summary() + chunk / 64, 1 << (chunk % 64));
            self.set_in(self.marks() + chunk, marks);
        }
        for (word, mask) in word_masks(range) {
            // While an epoch is open only the device writes, so no bit is lost between load and store. A locked
            // instruction for each word would be most of the cost of a hint.
            let at = self.at(plane + word);
            let before = at.load(Ordering::Relaxed);
            at.store(before | mask, Ordering::Release);
            let told = mask & (before | elsewhere(word));
            if told != 0 {
                known += u64::from(told.count_ones());
            }
        }
        range.count() - known
    }

    /// Sets `bits` of a word that the device writes alone.
    fn set_in(&self, word: usize, bits: u64) {
        let at = self.at(word);
        let before = at.load(Ordering::Relaxed);
        if bits & !before != 0 {
            at.store(before | bits, Ordering::Release);
        }
    }

    /// Adds `added` to a counter. Only the device writes counters.
    fn raise(&self, counter: usize, added: u64) {
        let counter = self.at(counter);
        let sum = counter.load(Ordering::Relaxed).wrapping_add(added);
        counter.store(sum, Ordering::Release);
    }

    /// Migrator: the hints for the 64 pages from `64 * index` on, by source; empty past the end.
    pub fn load(&self, index: usize) -> HintBits {
        if index >= self.bitmap_words() {
            return HintBits::default();
        }
        // Marks of 64 words share one, so that most of them need not be read.
        let marks = self.load_at(self.marks() + index / CHUNK_WORDS);
        if marks & (1 << (index % CHUNK_WORDS)) == 0 {
            return HintBits::default();
        }
        HintBits {
            driver: self.load_at(self.driver_plane() + index),
            agent: self.load_at(self.agent_plane() + index),
        }
    }

    /// Migrator: clears the hints for the 64 pages from `64 * index` on, and returns them. Only while no epoch is open.
    pub fn take(&self, index: usize) -> HintBits {
        if index >= self.bitmap_words() {
            return HintBits::default();
        }
        HintBits {
            driver: self.take_in(self.driver_plane() + index),
            agent: self.take_in(self.agent_plane() + index),
        }
    }

    /// Migrator: calls `found` with the index of each word that may have hints, ascending. The cost depends on the number of hints,
    /// not on the size of the guest.
    pub fn hinted_words(&self, mut found: impl FnMut(usize)) {
        for at in 0..summary_words(self.pages) as usize {
            for bit in bits_of(self.load_at(self.summary() + at)) {
                let chunk = at * 64 + bit;
                // The device may have set bits past the last chunk.
                if chunk as u64 >= mark_words(self.pages) {
                    break;
                }
                let marks = bits_of(self.load_at(self.marks() + chunk));
                marks.for_each(|bit| found(chunk * CHUNK_WORDS + bit));
            }
        }
    }

    /// Migrator: clears all hints, and calls `told` for each word that had any. Only while no epoch is open. The cost
    /// depends on the number of hints, not on the size of the guest.
    pub fn take_all(&self, mut told: impl FnMut(usize, HintBits)) {
        for at in 0..summary_words(self.pages) as usize {
            for bit in bits_of(self.take_in(self.summary() + at)) {
                let chunk = at * 64 + bit;
                // The device may have set bits past the last chunk.
                if chunk as u64 >= mark_words(self.pages) {
                    break;
                }
                for bit in bits_of(self.take_in(self.marks() + chunk)) {
                    let index = chunk * CHUNK_WORDS + bit;
                    let taken = self.take(index);
                    if taken.pages() != 0 {
                        told(index, taken);
                    }
                }
            }
        }
    }

    /// Clears a word and returns its bits. The device does not write it now.
    fn take_in(&self, word: usize) -> u64 {
        let at = self.at(word);
        let bits = at.load(Ordering::Acquire);
        // A store would allocate a page of the file.
        if bits != 0 {
            at.store(0, Ordering::Release);
        }
        bits
    }
}

/// The numbers of the set bits, ascending.
///
/// ```
/// use spec::hint_map::bits_of;
/// assert_eq!(bits_of(0b1001).collect::<Vec<_>>(), [0, 3]);
/// ```
pub fn bits_of(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let first = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(first)
    })
}

/// The words that `range` touches, each with the mask of its pages.
///
/// ```
/// use spec::{PageRange, hint_map::word_masks};
/// let range = PageRange::new(63, 2).unwrap();
/// assert_eq!(word_masks(range).collect::<Vec<_>>(), [(0, 1 << 63), (1, 1)]);
/// ```
pub fn word_masks(range: PageRange) -> impl Iterator<Item = (usize, u64)> {
    let (first, end) = (range.first(), range.end());
    (first / 64..end.div_ceil(64)).map(move |word| {
        let low = first.saturating_sub(word * 64).min(63);
        let high = (end - word * 64).min(64);
        let mask = (u64::MAX >> (64 - high)) & (u64::MAX << low);
        (word as usize, mask)
    })
}
