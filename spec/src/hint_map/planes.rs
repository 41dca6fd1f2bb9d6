// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The hints themselves: the device sets bits in the planes, and the migrator reads and clears them.

use super::layout::{AGENT_ONLY_WORD, CHUNK_WORDS, HINTED_WORD, summary_words};
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
        let chunk_pages = 64 * CHUNK_WORDS as u64;
        for chunk in range.first() / chunk_pages..=(range.end() - 1) / chunk_pages {
            // Before the planes: a device that dies in between leaves a superfluous summary bit, not a hint without one.
            let at = self.at(self.summary() + chunk as usize / 64);
            at.store(
                at.load(Ordering::Relaxed) | 1 << (chunk % 64),
                Ordering::Release,
            );
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
        let take = |word| self.at(word).swap(0, Ordering::AcqRel);
        HintBits {
            driver: take(self.driver_plane() + index),
            agent: take(self.agent_plane() + index),
        }
    }

    /// Migrator: clears all hints, and calls `told` for each word that had any. Only while no epoch is open. The cost
    /// depends on the number of hints, not on the size of the guest.
    pub fn take_all(&self, mut told: impl FnMut(usize, HintBits)) {
        for at in 0..summary_words(self.pages) as usize {
            // A plain load first: a swap would allocate a page of the file.
            let summary = self.at(self.summary() + at);
            let mut chunks = match summary.load(Ordering::Acquire) {
                0 => continue,
                _ => summary.swap(0, Ordering::AcqRel),
            };
            while chunks != 0 {
                let first = (at * 64 + chunks.trailing_zeros() as usize) * CHUNK_WORDS;
                chunks &= chunks - 1;
                for index in first..first.saturating_add(CHUNK_WORDS) {
                    if self.load(index).pages() != 0 {
                        told(index, self.take(index));
                    }
                }
            }
        }
    }
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
