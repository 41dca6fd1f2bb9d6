// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages of each kind: hinted to be free, in the balloon, or neither.
//!
//! A page in the balloon counts only as ballooned, even if it was hinted before.

use spec::PageRange;
use spec::page_map::PageMap;

/// Guest memory, and which of its pages are free or in the balloon.
#[derive(Clone, Debug)]
pub struct Layers<'a> {
    regions: Vec<PageRange>,
    hinted: Option<PageMap<'a>>,
    ballooned: Option<PageMap<'a>>,
}

/// Counts of the pages of each kind in a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// All of its pages.
    pub pages: u64,
    /// Those that the guest has hinted to be free.
    pub free: u64,
    /// Those that are in the balloon.
    pub ballooned: u64,
}

impl<'a> Layers<'a> {
    /// What the maps say about memory in `regions`, which are in rising order.
    pub fn new(
        regions: Vec<PageRange>,
        hinted: Option<PageMap<'a>>,
        ballooned: Option<PageMap<'a>>,
    ) -> Self {
        Self {
            regions,
            hinted,
            ballooned,
        }
    }

    /// The regions of guest memory, in rising order.
    pub fn regions(&self) -> &[PageRange] {
        &self.regions
    }

    /// Pages of guest memory.
    pub fn memory_pages(&self) -> u64 {
        self.regions.iter().map(|region| region.count()).sum()
    }

    /// The runs of free pages, if the guest was asked for hints.
    pub fn free(&self) -> Option<Vec<PageRange>> {
        self.hinted
            .map(|_| self.runs(|index| self.free_word(index)))
    }

    /// The runs of pages in the balloon, if they are known.
    pub fn ballooned(&self) -> Option<Vec<PageRange>> {
        self.ballooned
            .map(|_| self.runs(|index| self.ballooned_word(index)))
    }

    /// Counts the pages of each kind in `range`, which lies in guest memory.
    pub fn share(&self, range: PageRange) -> Share {
        let mut share = Share {
            pages: range.count(),
            ..Share::default()
        };
        for (index, mask) in spec::hint_map::word_masks(range) {
            share.free += u64::from((self.free_word(index) & mask).count_ones());
            share.ballooned += u64::from((self.ballooned_word(index) & mask).count_ones());
        }
        share
    }

    fn free_word(&self, index: usize) -> u64 {
        let hinted = self.hinted.map_or(0, |map| map.word(index));
        hinted & !self.ballooned_word(index)
    }

    fn ballooned_word(&self, index: usize) -> u64 {
        self.ballooned.map_or(0, |map| map.word(index))
    }

    /// The maximal runs of set pages. A run crosses the border of two regions that touch.
    fn runs(&self, word: impl Fn(usize) -> u64) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for (index, mask) in self
            .regions
            .iter()
            .flat_map(|region| spec::hint_map::word_masks(*region))
        {
            let mut bits = word(index) & mask;
            while bits != 0 {
                let first = bits.trailing_zeros();
                let count = (bits >> first).trailing_ones();
                // All ones up to the run's end. A shift by 64 would overflow.
                bits &= !(u64::MAX >> (64 - first - count));
                let first = index as u64 * 64 + u64::from(first);
                push(&mut runs, first, count.into());
            }
        }
        runs
    }
}

fn push(runs: &mut Vec<PageRange>, first: u64, count: u64) {
    let joined = runs
        .last()
        .filter(|last| last.end() == first)
        .and_then(|last| PageRange::new(last.first(), last.count() + count));
    match (runs.last_mut(), joined) {
        (Some(last), Some(joined)) => *last = joined,
        _ => runs.extend(PageRange::new(first, count)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use spec::page_map::{Header, Region};

    pub fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    /// The bytes of a map of `regions` in which the pages of `runs` are set.
    pub fn map_bytes(regions: &[PageRange], runs: &[PageRange]) -> Vec<u8> {
        let regions: Vec<_> = Region::lay_out(regions.iter().copied()).collect();
        let header = Header::of(regions.iter().copied());
        let mut words = vec![0u64; header.words as usize];
        for region in &regions {
            for (index, mask) in runs.iter().flat_map(|run| spec::hint_map::word_masks(*run)) {
                if let Some(word) = region.word_for(index as u64) {
                    words[word as usize] |= mask;
                }
            }
        }
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(regions.iter().flat_map(|region| region.to_bytes()));
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    /// Calls a test with the layers of small maps.
    pub fn with_layers<T>(
        regions: &[PageRange],
        hinted: &[PageRange],
        ballooned: &[PageRange],
        test: impl FnOnce(&Layers<'_>) -> T,
    ) -> T {
        let (hinted, ballooned) = (map_bytes(regions, hinted), map_bytes(regions, ballooned));
        test(&Layers::new(
            regions.to_vec(),
            Some(PageMap::parse(&hinted).unwrap()),
            Some(PageMap::parse(&ballooned).unwrap()),
        ))
    }

    #[test]
    fn runs_are_the_longest_and_end_with_memory() {
        let memory = [range(0, 130), range(130, 70), range(300, 100)];
        let hinted = [range(3, 1), range(60, 80), range(180, 150), range(399, 1)];
        with_layers(&memory, &hinted, &[range(100, 10)], |layers| {
            let free = [
                range(3, 1),
                range(60, 40),
                range(110, 30),
                range(180, 20),
                range(300, 30),
                range(399, 1),
            ];
            assert_eq!(layers.free().unwrap(), free);
            assert_eq!(layers.ballooned().unwrap(), [range(100, 10)]);
            assert_eq!(layers.memory_pages(), 300);
            let share = layers.share(range(90, 40));
            assert_eq!((share.pages, share.free, share.ballooned), (40, 30, 10));
        });
    }

    #[test]
    fn a_map_of_whole_words_is_one_run() {
        let memory = [range(0, 64 * 10)];
        with_layers(&memory, &memory, &[], |layers| {
            assert_eq!(layers.free().unwrap(), memory);
            assert_eq!(layers.ballooned().unwrap(), []);
        });
    }

    #[test]
    fn what_is_not_known_is_not_there() {
        let layers = Layers::new(vec![range(0, 10)], None, None);
        assert_eq!((layers.free(), layers.ballooned()), (None, None));
        assert_eq!(layers.share(range(0, 10)).free, 0);
    }
}
