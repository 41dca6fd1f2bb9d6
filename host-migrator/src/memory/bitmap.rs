// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration bitmap: one bit a guest page, set while the page is still to be sent.

use bitvec::field::BitField;
use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;
use bitvec::vec::BitVec;
use spec::PageRange;
use spec::hint_map::word_masks;
use spec::sync::{AtomicU64, Ordering};

/// Pages still to be sent, as 64-page words from guest-physical 0.
///
/// The sender claims words (takes the bits out) before it copies the pages. Harvests of the dirty logs OR bits in. Claim
/// before copy, always: a write after the claim is in the log.
///
/// A mark for each word says whether it may have bits, and a summary says the same of every 64 marks, which are a chunk. So the
/// cost of a walk in a late round depends on the number of dirty pages, not on the size of the guest.
#[derive(Debug)]
pub struct MigrationBitmap {
    words: Box<[AtomicU64]>,
    /// Bit `w` of `marks[c]` is set if word `64 * c + w` may have bits.
    marks: Box<[AtomicU64]>,
    /// Bit `c % 64` of `summary[c / 64]` is set if `marks[c]` may have bits.
    summary: Box<[AtomicU64]>,
    pages: u64,
}

impl MigrationBitmap {
    /// An empty bitmap for pages `0 .. pages`: nothing to be sent.
    ///
    /// It takes host memory only where bits are set, because guest memory may begin at 64 TiB.
    pub fn new(pages: u64) -> Self {
        Self {
            words: zeros(pages.div_ceil(64)),
            marks: zeros(pages.div_ceil(64 * 64)),
            summary: zeros(pages.div_ceil(64 * 64 * 64)),
            pages,
        }
    }

    /// Pages that the bitmap has bits for.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// 64-page words.
    pub fn word_count(&self) -> usize {
        self.words.len()
    }

    /// The word for pages `64 * index ..`.
    pub fn load(&self, index: usize) -> u64 {
        self.words[index].load(Ordering::Acquire)
    }

    /// Clears a word and returns its bits.
    pub fn claim(&self, index: usize) -> u64 {
        let word = &self.words[index];
        // A plain load first: in a late round most words are empty, and a swap would take the cache line exclusively.
        if word.load(Ordering::Relaxed) == 0 {
            0
        } else {
            word.swap(0, Ordering::AcqRel)
        }
    }

    /// Sets `bits` of a word; bits past the last page are ignored. Returns how many were not set before.
    pub fn merge(&self, index: usize, bits: u64) -> u64 {
        let bits = bits & self.valid_bits(index);
        if bits == 0 {
            return 0;
        }
        let before = self.words[index].fetch_or(bits, Ordering::AcqRel);
        self.note(index / 64, 1 << (index % 64));
        u64::from((bits & !before).count_ones())
    }

    /// The indices of the words with bits, ascending, at the time when the iterator reaches them.
    pub fn occupied(&self) -> impl Iterator<Item = usize> {
        self.occupied_from(0)
    }

    /// As [`MigrationBitmap::occupied`], from word `first` on.
    pub fn occupied_from(&self, first: usize) -> impl Iterator<Item = usize> {
        // The chunk that is being walked, its marks that were seen ahead, and its words that have been passed.
        let mut walked = None;
        let (mut ahead, mut passed) = (0_u64, 0_u64);
        std::iter::from_fn(move || {
            loop {
                let chunk = match walked {
                    Some(chunk) => chunk,
                    None => *walked.insert(self.next_chunk(first / 64)?),
                };
                if ahead == 0 {
                    let before_first = (1 << first.saturating_sub(chunk * 64).min(63)) - 1;
                    ahead = self.marks[chunk].load(Ordering::Acquire) & !(passed | before_first);
                    if ahead == 0 {
                        self.retire(chunk, passed & !before_first);
                        passed = 0;
                        walked = Some(self.next_chunk(chunk + 1)?);
                        continue;
                    }
                }
                let bit = ahead.trailing_zeros();
                ahead &= ahead - 1;
                // Words without a mark have been passed, too.
                passed = u64::MAX >> (63 - bit);
                let index = chunk * 64 + bit as usize;
                if self.words[index].load(Ordering::Relaxed) != 0 {
                    return Some(index);
                }
            }
        })
    }

    /// Clears `bits` of a word and returns those of them that were set.
    pub fn clear(&self, index: usize, bits: u64) -> u64 {
        if self.words[index].load(Ordering::Relaxed) & bits == 0 {
            return 0;
        }
        self.words[index].fetch_and(!bits, Ordering::AcqRel) & bits
    }

    /// Sets all pages of `range`, cut to the bitmap's end.
    pub fn insert(&self, range: PageRange) {
        let Some(range) = PageRange::new(0, self.pages).and_then(|all| all.intersection(range))
        else {
            return;
        };
        for (index, mask) in word_masks(range) {
            self.words[index].fetch_or(mask, Ordering::AcqRel);
        }
        let (first, last) = (range.first() / 64, (range.end() - 1) / 64);
        let words = PageRange::new(first, last - first + 1).into_iter();
        for (chunk, marks) in words.flat_map(word_masks) {
            self.note(chunk, marks);
        }
    }

    /// Sets the pages whose bit is set in `bits`, whose first bit is page `first`: a dirty log as VMMs have it. Pages past
    /// the end are ignored. Returns how many bits are set.
    ///
    /// ```
    /// use bitvec::prelude::*;
    /// use host_migrator::MigrationBitmap;
    /// let bitmap = MigrationBitmap::new(200);
    /// let dirty = bits![u64, Lsb0; 1, 0, 1];
    /// assert_eq!(bitmap.insert_bits(63, dirty), 2);
    /// assert_eq!(bitmap.to_bits().iter_ones().collect::<Vec<_>>(), [63, 65]);
    /// ```
    pub fn insert_bits(&self, first: u64, bits: &BitSlice<u64, Lsb0>) -> u64 {
        match bits.domain().region() {
            // Whole words, as the kernel gives them.
            Some((None, words, None)) => self.insert_words(first, words.iter().copied()),
            _ => self.insert_words(first, bits.chunks(64).map(|chunk| chunk.load_le())),
        }
    }

    /// A copy of it.
    pub fn to_bits(&self) -> BitVec<u64, Lsb0> {
        let mut bits = BitVec::repeat(false, self.pages as usize);
        for index in self.occupied() {
            let first = index * 64;
            let end = (first + 64).min(bits.len());
            bits[first..end].store_le(self.load(index));
        }
        bits
    }

    /// Sets the bits of `words`, whose lowest is page `first`. Each chunk is marked once.
    fn insert_words(&self, first: u64, words: impl Iterator<Item = u64>) -> u64 {
        let shift = first % 64;
        let (mut chunk, mut marks, mut count) = (0, 0, 0);
        for (at, word) in ((first / 64) as usize..)
            .zip(words)
            .filter(|(_, word)| *word != 0)
        {
            count += u64::from(word.count_ones());
            let high = if shift == 0 { 0 } else { word >> (64 - shift) };
            for (index, bits) in [(at, word << shift), (at + 1, high)] {
                if bits == 0 || index >= self.words.len() {
                    continue;
                }
                self.words[index].fetch_or(bits & self.valid_bits(index), Ordering::AcqRel);
                if index / 64 != chunk && marks != 0 {
                    self.note(chunk, std::mem::take(&mut marks));
                }
                chunk = index / 64;
                marks |= 1 << (index % 64);
            }
        }
        if marks != 0 {
            self.note(chunk, marks);
        }
        count
    }

    /// Clears all pages of `range`, cut to the bitmap's end. Returns how many were set.
    pub fn remove(&self, range: PageRange) -> u64 {
        let Some(range) = PageRange::new(0, self.pages).and_then(|all| all.intersection(range))
        else {
            return 0;
        };
        word_masks(range)
            .map(|(index, mask)| u64::from(self.clear(index, mask).count_ones()))
            .sum()
    }

    /// Clears every page.
    pub fn clear_all(&self) {
        for index in self.occupied() {
            self.words[index].store(0, Ordering::Release);
        }
    }

    /// Whether page `pfn` is set; false past the end.
    pub fn contains(&self, pfn: u64) -> bool {
        pfn < self.pages && self.load((pfn / 64) as usize) & (1 << (pfn % 64)) != 0
    }

    /// Pages that are set.
    pub fn count(&self) -> u64 {
        let chunks = std::iter::successors(self.next_chunk(0), |chunk| self.next_chunk(chunk + 1));
        let words = chunks.flat_map(|chunk| {
            let marks = self.marks[chunk].load(Ordering::Acquire);
            bits_of(marks).map(move |bit| chunk * 64 + bit)
        });
        let pages = |index: usize| self.words[index].load(Ordering::Relaxed).count_ones();
        words.map(|index| u64::from(pages(index))).sum()
    }

    /// Sets `marks` of `chunk`. Call it after the words were set: see [`MigrationBitmap::retire`].
    fn note(&self, chunk: usize, marks: u64) {
        self.marks[chunk].fetch_or(marks, Ordering::AcqRel);
        self.summary[chunk / 64].fetch_or(1 << (chunk % 64), Ordering::AcqRel);
    }

    /// Clears the marks `passed` of `chunk`, except of words that have bits, and then the chunk in the summary, unless it has
    /// marks. A thread that sets a word meanwhile sets the mark either before it is cleared here, and then the check of the
    /// word finds the bits, or afterwards. The same holds for the mark and the summary.
    fn retire(&self, chunk: usize, passed: u64) {
        let before = self.marks[chunk].fetch_and(!passed, Ordering::AcqRel);
        let has_bits = |bit: &usize| self.words[chunk * 64 + bit].load(Ordering::Acquire) != 0;
        let again = bits_of(before & passed).filter(has_bits);
        let again = again.fold(0, |marks, bit| marks | 1 << bit);
        if again != 0 {
            self.note(chunk, again);
        } else if before & !passed == 0 {
            let (summary, bit) = (&self.summary[chunk / 64], 1 << (chunk % 64));
            summary.fetch_and(!bit, Ordering::AcqRel);
            if self.marks[chunk].load(Ordering::Acquire) != 0 {
                summary.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// The first chunk from `chunk` on that may have marks.
    fn next_chunk(&self, chunk: usize) -> Option<usize> {
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

    fn valid_bits(&self, index: usize) -> u64 {
        let left = self.pages - index as u64 * 64;
        if left >= 64 {
            u64::MAX
        } else {
            u64::MAX >> (64 - left)
        }
    }
}

/// `count` words of zero. The kernel allocates memory for them when they are first written.
#[cfg(not(loom))]
fn zeros(count: u64) -> Box<[AtomicU64]> {
    bytemuck::zeroed_slice_box(count as usize)
}

/// loom's atomics cannot be made from zeroed bytes.
#[cfg(loom)]
fn zeros(count: u64) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// The numbers of the set bits, ascending.
pub(crate) fn bits_of(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
        bits &= bits - 1;
        Some(first)
    })
}

/// The runs of set bits in a word whose first bit is page `base`, lowest first.
///
/// ```
/// use host_migrator::memory::bitmap::runs_of_word;
/// use spec::PageRange;
/// let runs: Vec<_> = runs_of_word(128, 0b1011).collect();
/// assert_eq!(runs, [PageRange::new(128, 2).unwrap(), PageRange::new(131, 1).unwrap()]);
/// ```
pub fn runs_of_word(base: u64, bits: u64) -> impl Iterator<Item = PageRange> {
    let mut left = bits;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let first = left.trailing_zeros();
        let count = (left >> first).trailing_ones();
        let mask = if count == 64 {
            u64::MAX
        } else {
            ((1 << count) - 1) << first
        };
        left &= !mask;
        PageRange::new(base + u64::from(first), u64::from(count))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitvec::prelude::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_naive_bit_vector(pages in 1u64..300, ops in proptest::collection::vec((0u8..4, 0u64..320, 1u64..100, any::<u64>()), 0..30)) {
            let map = MigrationBitmap::new(pages);
            let mut naive: BitVec<u64, Lsb0> = BitVec::repeat(false, pages as usize);
            for (op, first, count, bits) in ops {
                let index = (first / 64) as usize % map.word_count();
                let in_word = |b: usize| index * 64 + b;
                match op {
                    0 => {
                        map.insert(PageRange::new(first, count).unwrap());
                        for page in first..(first + count).min(pages) { naive.set(page as usize, true); }
                    }
                    1 => {
                        let mut added = 0;
                        for b in (0..64).filter(|b| bits & (1 << b) != 0 && in_word(*b) < pages as usize) {
                            added += u64::from(!naive.replace(in_word(b), true));
                        }
                        prop_assert_eq!(map.merge(index, bits), added);
                    }
                    2 => {
                        let mut cleared = 0;
                        for b in (0..64).filter(|b| bits & (1 << b) != 0 && in_word(*b) < pages as usize) {
                            if naive.replace(in_word(b), false) { cleared |= 1 << b; }
                        }
                        prop_assert_eq!(map.clear(index, bits), cleared);
                    }
                    _ => {
                        let end = (index * 64 + 64).min(pages as usize);
                        let expected: u64 = naive[index * 64..end].iter_ones().map(|b| 1u64 << b).sum();
                        prop_assert_eq!(map.claim(index), expected);
                        naive[index * 64..end].fill(false);
                    }
                }
            }
            prop_assert_eq!(map.count(), naive.count_ones() as u64);
            for page in 0..pages { prop_assert_eq!(map.contains(page), naive[page as usize]); }
        }

        #[test]
        fn bits_from_any_first_page_land_on_their_pages(
            first in 0u64..200,
            words in proptest::collection::vec(any::<u64>(), 1..4),
            cut in 0usize..64,
            pages in 1u64..500,
        ) {
            let map = MigrationBitmap::new(pages);
            for dirty in [words.view_bits::<Lsb0>(), &words.view_bits()[cut..]] {
                map.clear_all();
                prop_assert_eq!(map.insert_bits(first, dirty), dirty.count_ones() as u64);
                let expected = dirty.iter_ones().map(|bit| first as usize + bit);
                let expected: Vec<_> = expected.filter(|page| *page < pages as usize).collect();
                prop_assert_eq!(map.to_bits().iter_ones().collect::<Vec<_>>(), expected);
            }
        }

        #[test]
        fn a_walk_meets_every_page_that_is_set_and_forgets_none(
            pages in 1u64..40_000,
            inserts in proptest::collection::vec((0u64..40_000, 1u64..5000), 0..5),
            left in proptest::collection::vec(0usize..700, 0..5),
        ) {
            let map = MigrationBitmap::new(pages);
            for (first, count) in inserts {
                map.insert(PageRange::new(first, count).unwrap());
            }
            let set = |map: &MigrationBitmap| -> Vec<usize> {
                (0..map.word_count()).filter(|index| map.load(*index) != 0).collect()
            };
            // The first walk claims all words but some; the second finds just these.
            let expected = set(&map);
            let walked: Vec<usize> = map
                .occupied()
                .inspect(|index| if !left.contains(index) { map.claim(*index); })
                .collect();
            prop_assert_eq!(walked, expected);
            prop_assert_eq!(map.occupied().collect::<Vec<_>>(), set(&map));
            for first in [1, 63, 64, 200] {
                let rest: Vec<usize> = set(&map).into_iter().filter(|index| *index >= first).collect();
                prop_assert_eq!(map.occupied_from(first).collect::<Vec<_>>(), rest);
            }
            let count: u64 = set(&map).iter().map(|index| u64::from(map.load(*index).count_ones())).sum();
            prop_assert_eq!(map.count(), count);
        }

        #[test]
        fn runs_cover_exactly_the_set_bits(bits: u64) {
            let mut rebuilt = 0u64;
            let mut last_end = 0;
            for run in runs_of_word(64, bits) {
                prop_assert!(run.first() > last_end || last_end == 0, "runs must not touch");
                last_end = run.end();
                for page in run.first()..run.end() { rebuilt |= 1 << (page - 64); }
            }
            prop_assert_eq!(rebuilt, bits);
        }
    }
}
