// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shared map of hinted pages: written by the device, read by the migrator just before it sends.
//!
//! The map is a memory file (memfd, sealed with `F_SEAL_SHRINK`). The migrator makes it and passes it to the device over
//! the control socket:
//!
//! ```text
//! byte 0     magic "LACUNAHM"   8   version, little-endian   16  pages
//!      24    epoch (0: closed)  32  phase (HintPhase)        40  pages hinted in this epoch
//!      48    of these, pages that only the agent reported    56  the agent has reported all free pages below this one
//!      64    who must not be asked: 1 driver, 2 agent
//!      4096  plane of the driver: one bit for each 4 KiB page from guest-physical 0, bit p % 64 of word p / 64
//!      then  plane of the agent, in the same layout
//!      then  summary: bit c % 64 of word c / 64 is set if words 64 * c .. of either plane may hold a hint
//! ```
//!
//! All words are 64-bit atomics. A page is hinted if its bit is set in either plane; which plane it is in matters to
//! statistics only. The migrator clears the planes between two epochs. The device only sets bits, and only while an
//! epoch is open. So every word has one writer at a time (within the device, the one that holds its lock), which may
//! read a word and write it back without a locked instruction.

mod layout;
mod phase;
mod planes;
mod tellers;
#[cfg(test)]
mod tests;

use crate::sync::{AtomicU64, Ordering};
pub use tellers::{HintBits, Tellers};

/// A view of the shared map in `W`.
#[derive(Debug)]
pub struct HintMap<W> {
    words: W,
    pages: u64,
}

impl<W: Words> HintMap<W> {
    /// Lays a new, closed map for `pages` pages out in zeroed memory.
    ///
    /// # Errors
    /// [`HintMapError::TooSmall`] if the memory has fewer than [`bytes_for`]`(pages)` bytes.
    pub fn format(words: W, pages: u64) -> Result<Self, HintMapError> {
        check_size(&words, pages)?;
        let map = Self { words, pages };
        map.at(PAGES_WORD).store(pages, Ordering::Relaxed);
        map.at(VERSION_WORD).store(VERSION, Ordering::Relaxed);
        map.at(MAGIC_WORD).store(MAGIC, Ordering::Release);
        Ok(map)
    }

    /// Opens a map that the other side has laid out. The page count is read only here, so a peer cannot change it
    /// later.
    ///
    /// # Errors
    /// [`HintMapError`] for memory that is not a map, or one that does not fit.
    pub fn open(words: W) -> Result<Self, HintMapError> {
        let read = |index| words.word(index).map(|word| word.load(Ordering::Acquire));
        let (Some(magic), Some(version), Some(pages)) =
            (read(MAGIC_WORD), read(VERSION_WORD), read(PAGES_WORD))
        else {
            return Err(HintMapError::TooSmall { pages: 0 });
        };
        if magic != MAGIC {
            return Err(HintMapError::Magic(magic));
        }
        if version != VERSION {
            return Err(HintMapError::Version(version));
        }
        check_size(&words, pages)?;
        Ok(Self { words, pages })
    }

    /// Pages that the map has bits for.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The open epoch's number, 0 if none is open.
    pub fn epoch(&self) -> u64 {
        self.at(EPOCH_WORD).load(Ordering::Acquire)
    }

    /// How far the guest is. An unknown number reads as closed.
    pub fn phase(&self) -> HintPhase {
        HintPhase::from_raw(self.at(PHASE_WORD).load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Pages newly hinted since the epoch was opened.
    pub fn hinted_pages(&self) -> u64 {
        self.at(HINTED_WORD).load(Ordering::Acquire)
    }

    /// Those of [`HintMap::hinted_pages`] that the agent reported and the driver had not hinted.
    pub fn agent_only_pages(&self) -> u64 {
        self.at(AGENT_ONLY_WORD).load(Ordering::Acquire)
    }

    /// The agent has reported all free pages below this one. Read it before the planes: then their words for these pages
    /// are complete.
    pub fn answered(&self) -> u64 {
        self.at(ANSWERED_WORD).load(Ordering::Acquire)
    }

    /// Device: the agent has reported all free pages below `page`.
    pub fn set_answered(&self, page: u64) {
        self.at(ANSWERED_WORD).store(page, Ordering::Release);
    }

    /// Whose hints the migrator wants; by default everybody's.
    pub fn asked(&self) -> Tellers {
        let not_asked = self.at(NOT_ASKED_WORD).load(Ordering::Acquire);
        Tellers {
            driver: not_asked & NO_DRIVER == 0,
            agent: not_asked & NO_AGENT == 0,
        }
    }

    /// Migrator: asks only `tellers`. Only while no epoch is open.
    pub fn ask(&self, tellers: Tellers) {
        let driver = if tellers.driver { 0 } else { NO_DRIVER };
        let agent = if tellers.agent { 0 } else { NO_AGENT };
        self.at(NOT_ASKED_WORD)
            .store(driver | agent, Ordering::Release);
    }

    /// Device: announces `epoch` in `phase` with no page hinted yet.
    pub fn begin(&self, epoch: u64, phase: HintPhase) {
        self.at(HINTED_WORD).store(0, Ordering::Relaxed);
        self.at(AGENT_ONLY_WORD).store(0, Ordering::Relaxed);
        self.at(ANSWERED_WORD).store(0, Ordering::Relaxed);
        self.set_phase(phase);
        self.at(EPOCH_WORD).store(epoch, Ordering::Release);
    }

    /// Device: the guest has moved on to `phase`.
    pub fn set_phase(&self, phase: HintPhase) {
        self.at(PHASE_WORD).store(phase as u64, Ordering::Release);
    }

    /// Device: the epoch is closed. `phase` says whether another may follow.
    pub fn end(&self, phase: HintPhase) {
        self.at(EPOCH_WORD).store(0, Ordering::Release);
        self.set_phase(phase);
    }

    /// Device: the driver has hinted `range`, which is cut to the map's end. Returns how many pages nobody
    /// had told before. One caller at a time, as for all that the device writes: its lock sees to that.
    pub fn insert(&self, range: PageRange) -> u64 {
        let told_twice = self.agent_only_pages() != 0;
        let added = self.insert_in(self.driver_plane(), range, |word| {
            // Most epochs have no agent: its plane then need not be looked at.
            if told_twice {
                self.load_at(self.agent_plane() + word)
            } else {
                0
            }
        });
        self.raise(HINTED_WORD, added);
        added
    }

    /// Device: the agent has told that `range`, which is cut to the map's end, is free. Returns how many
    /// pages nobody had told before.
    pub fn insert_of_agent(&self, range: PageRange) -> u64 {
        let added = self.insert_in(self.agent_plane(), range, |word| {
            self.load_at(self.driver_plane() + word)
        });
        self.raise(AGENT_ONLY_WORD, added);
        self.raise(HINTED_WORD, added);
        added
    }

    /// Sets the pages of `range` in the plane from word `plane` on. Counts those that were not there, and
    /// not in what `elsewhere` has for the word.
    fn insert_in(&self, plane: usize, range: PageRange, elsewhere: impl Fn(usize) -> u64) -> u64 {
        let Some(range) = PageRange::new(0, self.pages).and_then(|all| all.intersection(range))
        else {
            return 0;
        };
        let mut known = 0;
        let chunk_pages = 64 * CHUNK_WORDS as u64;
        for chunk in range.first() / chunk_pages..=(range.end() - 1) / chunk_pages {
            // Before the words: a device that dies between leaves a bit too many, never a hint that nobody finds.
            let at = self.at(self.summary() + chunk as usize / 64);
            at.store(
                at.load(Ordering::Relaxed) | 1 << (chunk % 64),
                Ordering::Release,
            );
        }
        for (word, mask) in word_masks(range) {
            // While an epoch is open nobody but the device writes, so that nothing can be lost between the two: a
            // locked instruction for each word would be most of what a hint costs.
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

    /// Adds `added` to a counter, which only the device writes.
    fn raise(&self, counter: usize, added: u64) {
        let counter = self.at(counter);
        let sum = counter.load(Ordering::Relaxed).wrapping_add(added);
        counter.store(sum, Ordering::Release);
    }

    /// Migrator: who has told which of the pages `64 * index ..`; nothing past the end.
    pub fn load(&self, index: usize) -> HintBits {
        if index >= self.bitmap_words() {
            return HintBits::default();
        }
        HintBits {
            driver: self.load_at(self.driver_plane() + index),
            agent: self.load_at(self.agent_plane() + index),
        }
    }

    /// Migrator: takes the hints for pages `64 * index ..` out of the map. Only while no epoch is open.
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

    /// Migrator: takes all hints out of the map; calls `told` for each word that has any. Only while no epoch is open.
    /// Costs what was hinted, not what the guest has.
    pub fn take_all(&self, mut told: impl FnMut(usize, HintBits)) {
        for at in 0..summary_words(self.pages) as usize {
            // A plain load first: a swap makes the file's page real.
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

    /// Words of a plane.
    pub fn bitmap_words(&self) -> usize {
        // No overflow: `check_size` has shown that the memory holds all words.
        self.pages.div_ceil(64) as usize
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        self.words
            .word(index)
            .expect("the memory's size was checked when the map was made")
    }

    fn load_at(&self, index: usize) -> u64 {
        self.at(index).load(Ordering::Acquire)
    }

    fn driver_plane(&self) -> usize {
        PLANES_WORD
    }

    fn agent_plane(&self) -> usize {
        PLANES_WORD + self.bitmap_words()
    }

    fn summary(&self) -> usize {
        PLANES_WORD + 2 * self.bitmap_words()
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

fn check_size<W: Words>(words: &W, pages: u64) -> Result<(), HintMapError> {
    let too_small = HintMapError::TooSmall { pages };
    let bytes = bytes_for(pages).ok_or(too_small)?;
    let last = usize::try_from(bytes / 8 - 1).map_err(|_| too_small)?;
    words.word(last).map(|_| ()).ok_or(too_small)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn memory(pages: u64) -> Vec<AtomicU64> {
        (0..bytes_for(pages).unwrap() / 8)
            .map(|_| AtomicU64::new(0))
            .collect()
    }

    #[test]
    fn a_map_that_claims_more_pages_than_its_memory_is_refused() {
        let words = memory(64);
        HintMap::format(&words[..], 64).unwrap();
        words[PAGES_WORD].store(64 * 1024, Ordering::Relaxed);
        assert_eq!(
            HintMap::open(&words[..]).unwrap_err(),
            HintMapError::TooSmall { pages: 64 * 1024 }
        );
        words[PAGES_WORD].store(u64::MAX, Ordering::Relaxed);
        assert!(HintMap::open(&words[..]).is_err());
    }

    #[test]
    fn memory_that_is_not_a_map_is_refused() {
        let words = memory(64);
        assert_eq!(
            HintMap::open(&words[..]).unwrap_err(),
            HintMapError::Magic(0)
        );
        HintMap::format(&words[..], 64).unwrap();
        words[VERSION_WORD].store(9, Ordering::Relaxed);
        assert_eq!(
            HintMap::open(&words[..]).unwrap_err(),
            HintMapError::Version(9)
        );
    }

    #[test]
    fn a_page_hinted_twice_counts_once() {
        let words = memory(256);
        let map = HintMap::format(&words[..], 256).unwrap();
        map.begin(1, HintPhase::Requested);
        assert_eq!(map.insert(PageRange::new(10, 100).unwrap()), 100);
        assert_eq!(map.insert(PageRange::new(50, 100).unwrap()), 40);
        assert_eq!(map.hinted_pages(), 140);
        map.begin(2, HintPhase::Requested);
        assert_eq!(map.hinted_pages(), 0);
    }

    #[test]
    fn who_told_a_page_is_known_and_told_twice_it_counts_once() {
        let words = memory(256);
        let map = HintMap::format(&words[..], 256).unwrap();
        map.begin(1, HintPhase::Requested);
        assert_eq!(map.insert(PageRange::new(0, 64).unwrap()), 64);
        assert_eq!(
            map.insert_of_agent(PageRange::new(32, 64).unwrap()),
            32,
            "half of it the driver had told"
        );
        assert_eq!(map.insert(PageRange::new(64, 64).unwrap()), 32);
        assert_eq!((map.hinted_pages(), map.agent_only_pages()), (128, 32));
        let (low, high) = (u64::from(u32::MAX), u64::MAX << 32);
        let told = |driver, agent| HintBits { driver, agent };
        assert_eq!(map.load(0), told(u64::MAX, high));
        assert_eq!(map.load(1), told(u64::MAX, low));
        let agent_alone = Tellers {
            driver: false,
            agent: true,
        };
        assert_eq!(map.load(1).of(agent_alone, 0xff), told(0, 0xff));
        assert_eq!(map.take(1).pages(), u64::MAX);
        assert_eq!(map.load(1), HintBits::default());
        assert_eq!(map.load(4), HintBits::default());
        map.set_answered(96);
        map.begin(2, HintPhase::Requested);
        assert_eq!((map.answered(), map.agent_only_pages()), (0, 0));
    }

    #[test]
    fn a_migrator_that_says_nothing_has_everybody_asked() {
        let words = memory(64);
        let map = HintMap::format(&words[..], 64).unwrap();
        assert_eq!(map.asked(), Tellers::ALL);
        let driver_alone = Tellers {
            driver: true,
            agent: false,
        };
        map.ask(driver_alone);
        assert_eq!(HintMap::open(&words[..]).unwrap().asked(), driver_alone);
    }

    proptest! {
        #[test]
        fn masks_cover_exactly_the_pages_of_the_range(first in 0u64..300, count in 1u64..300) {
            let range = PageRange::new(first, count).unwrap();
            let mut pages = Vec::new();
            for (word, mask) in word_masks(range) {
                pages.extend((0..64).filter(|b| mask & (1 << b) != 0).map(|b| word as u64 * 64 + b));
            }
            prop_assert_eq!(pages, (first..first + count).collect::<Vec<_>>());
        }

        #[test]
        fn all_that_was_told_is_taken_once_and_nothing_else(
            hints in proptest::collection::vec((0u64..600_000, 1u64..9000, proptest::bool::ANY), 0..6),
        ) {
            let pages = 550_000;
            let words = memory(pages);
            let map = HintMap::format(&words[..], pages).unwrap();
            for (first, count, by_agent) in hints {
                let range = PageRange::new(first, count).unwrap();
                if by_agent { map.insert_of_agent(range); } else { map.insert(range); }
            }
            let told = |map: &HintMap<&[AtomicU64]>| -> Vec<(usize, HintBits)> {
                (0..map.bitmap_words()).map(|index| (index, map.load(index))).filter(|(_, told)| told.pages() != 0).collect()
            };
            let expected = told(&map);
            let mut taken = Vec::new();
            map.take_all(|index, told| taken.push((index, told)));
            prop_assert_eq!(taken, expected);
            prop_assert_eq!(told(&map), []);
            map.take_all(|index, _| panic!("word {index} was taken before"));
        }

        #[test]
        fn a_hint_past_the_end_sets_only_what_the_map_holds(first in 0u64..400, count in 1u64..u64::MAX / 2) {
            let words = memory(200);
            let map = HintMap::format(&words[..], 200).unwrap();
            let added = map.insert(PageRange::new(first, count).unwrap());
            prop_assert_eq!(added, 200u64.saturating_sub(first).min(count));
            let set: u64 = (0..4).map(|w| u64::from(map.load(w).driver.count_ones())).sum();
            prop_assert_eq!(set, added);
        }
    }
}
