// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sets of pages, with one word for 64 pages.

use alloc::vec::Vec;

use crate::PageRange;
use crate::hint_map::word_masks;
use crate::trace::PageBits;

/// The pages of the largest guest of a trace: 4 TiB. A set of them takes 128 MiB.
pub(super) const MAX_PAGES: u64 = 1 << 30;

/// A set of pages below [`MAX_PAGES`]; others are ignored.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    words: Vec<u64>,
}

impl Pages {
    pub(super) fn word(&self, word: u64) -> u64 {
        usize::try_from(word)
            .ok()
            .and_then(|index| self.words.get(index))
            .map_or(0, |word| *word)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// The first page.
    pub(super) fn first(&self) -> Option<u64> {
        let index = self.words.iter().position(|word| *word != 0)?;
        Some(index as u64 * 64 + u64::from(self.words[index].trailing_zeros()))
    }

    /// The first page that is not in `others`.
    pub(super) fn first_outside(&self, others: &Self) -> Option<u64> {
        let left = |index: usize| self.words[index] & !others.word(index as u64);
        let index = (0..self.words.len()).find(|index| left(*index) != 0)?;
        Some(index as u64 * 64 + u64::from(left(index).trailing_zeros()))
    }

    pub(super) fn clear(&mut self) {
        self.words.clear();
    }

    /// Moves all pages of `others` into this set.
    pub(super) fn take_all(&mut self, others: &mut Self) {
        for (word, mask) in (0..).zip(core::mem::take(&mut others.words)) {
            self.insert(PageBits { word, mask });
        }
    }

    pub(super) fn insert(&mut self, bits: PageBits) {
        if bits.word >= MAX_PAGES / 64 || bits.mask == 0 {
            return;
        }
        let index = bits.word as usize;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        self.words[index] |= bits.mask;
    }

    pub(super) fn remove(&mut self, bits: PageBits) {
        if let Some(word) = usize::try_from(bits.word)
            .ok()
            .and_then(|index| self.words.get_mut(index))
        {
            *word &= !bits.mask;
        }
    }

    pub(super) fn insert_range(&mut self, range: PageRange) {
        bits_of(range).for_each(|bits| self.insert(bits));
    }

    pub(super) fn remove_range(&mut self, range: PageRange) {
        bits_of(range).for_each(|bits| self.remove(bits));
    }

    /// The first page of `range` that is not in the set.
    pub(super) fn first_missing(&self, range: PageRange) -> Option<u64> {
        if range.end() > MAX_PAGES {
            return Some(range.first().max(MAX_PAGES));
        }
        bits_of(range).find_map(|bits| {
            let missing = bits.mask & !self.word(bits.word);
            (missing != 0).then(|| first_page(bits.word, missing))
        })
    }
}

/// The words of `range`, cut to [`MAX_PAGES`].
pub(super) fn bits_of(range: PageRange) -> impl Iterator<Item = PageBits> {
    let inside = PageRange::new(0, MAX_PAGES).and_then(|all| all.intersection(range));
    inside.into_iter().flat_map(|range| {
        word_masks(range).map(|(word, mask)| PageBits {
            word: word as u64,
            mask,
        })
    })
}

/// The page of the lowest bit in `mask`.
pub(super) fn first_page(word: u64, mask: u64) -> u64 {
    word * 64 + u64::from(mask.trailing_zeros())
}
