// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration bitmap: one bit a guest page, set while the page is still to be sent.

use bitvec::field::BitField;
use bitvec::order::Lsb0;
use bitvec::slice::BitSlice;
use bitvec::vec::BitVec;
use spec::PageRange;
use spec::hint_map::{bits_of, word_masks};
use spec::sync::{AtomicU64, Ordering};

use super::marks::{Marks, raise};
use super::words::zeros;

/// The words of this many chunks are read ahead in one go, so that their cache misses overlap.
const CHUNKS_AHEAD: usize = 16;
/// Chunks with more marks than this are not read ahead: the processor sees by itself that their words follow each other.
const FEW_MARKS: u32 = 16;

/// Pages still to be sent, as 64-page words from guest-physical 0.
///
/// The sender claims words (takes the bits out) before it copies the pages. Harvests of the dirty logs OR bits in. Claim
/// before copy, always: a write after the claim is in the log.
///
/// A mark for each word says whether it may have bits. So the cost of a walk in a late round depends on the number of dirty
/// pages, not on the size of the guest.
#[derive(Debug)]
pub struct MigrationBitmap {
    words: Box<[AtomicU64]>,
    marks: Marks,
    /// Pages that were set and had not been, since the bitmap was made.
    added: AtomicU64,
    pages: u64,
}

/// Where a walk over the words of a [`MigrationBitmap`] is. It can stop, and go on with [`MigrationBitmap::next`].
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The chunk that is walked, or the first that may be.
    chunk: usize,
    is_in_chunk: bool,
    /// Words of the chunk that have been passed, or are not part of the walk.
    passed: u64,
    /// Words of the chunk with a mark that have not been reached yet.
    ahead: u64,
    /// The words of chunks below this one have been read ahead.
    read: usize,
}

impl Cursor {
    /// A walk from word `first` on.
    pub fn from_word(first: usize) -> Self {
        Self {
            chunk: first / 64,
            is_in_chunk: false,
            passed: (1 << (first % 64)) - 1,
            ahead: 0,
            read: 0,
        }
    }
}

impl MigrationBitmap {
    /// An empty bitmap for pages `0 .. pages`: nothing to be sent.
    ///
    /// It takes host memory only where bits are set, because guest memory may begin at 64 TiB.
    pub fn new(pages: u64) -> Self {
        Self {
            words: zeros(pages.div_ceil(64)),
            marks: Marks::new(pages.div_ceil(64)),
            added: AtomicU64::new(0),
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
        self.marks.set(index / 64, 1 << (index % 64));
        let added = u64::from((bits & !before).count_ones());
        self.added.fetch_add(added, Ordering::Relaxed);
        added
    }

    /// As [`MigrationBitmap::merge`], where no other thread has the bitmap: without locked instructions.
    pub(crate) fn merge_alone(&mut self, index: usize, bits: u64) {
        let bits = bits & self.valid_bits(index);
        if bits != 0 {
            raise(&self.words[index], bits);
            self.marks.set_alone(index / 64, 1 << (index % 64));
        }
    }

    /// As [`MigrationBitmap::load`], for a map with few pages: the word is not read if it has no mark. No other thread may
    /// change the map meanwhile.
    pub(crate) fn load_marked(&self, index: usize) -> u64 {
        match self.marks.may_have(index) {
            true => self.load(index),
            false => 0,
        }
    }

    /// The indices of the words with bits, ascending, at the time when the iterator reaches them.
    pub fn occupied(&self) -> impl Iterator<Item = usize> {
        self.occupied_from(0)
    }

    /// As [`MigrationBitmap::occupied`], from word `first` on.
    pub fn occupied_from(&self, first: usize) -> impl Iterator<Item = usize> {
        let mut cursor = Cursor::from_word(first);
        std::iter::from_fn(move || self.next(&mut cursor, |_| 0))
    }

    /// The index of the next word with bits in the walk that is at `cursor`.
    ///
    /// `ahead` is called for words that come soon, once for most of them. It reads what the caller will need with that word,
    /// and returns anything that depends on what it read.
    #[inline]
    pub fn next(&self, cursor: &mut Cursor, mut ahead: impl FnMut(usize) -> u64) -> Option<usize> {
        loop {
            while cursor.ahead != 0 {
                let bit = cursor.ahead.trailing_zeros();
                cursor.ahead &= cursor.ahead - 1;
                let index = cursor.chunk * 64 + bit as usize;
                if self.words[index].load(Ordering::Relaxed) != 0 {
                    return Some(index);
                }
            }
            if !self.turn(cursor, &mut ahead) {
                return None;
            }
        }
    }

    /// Finds marks ahead of `cursor`, in its chunk or in one after it. False if there are none.
    #[inline(never)]
    fn turn(&self, cursor: &mut Cursor, ahead: &mut impl FnMut(usize) -> u64) -> bool {
        loop {
            if cursor.is_in_chunk {
                cursor.ahead = self.marks.of(cursor.chunk) & !cursor.passed;
                if cursor.ahead != 0 {
                    // Words without a mark have been passed, too.
                    cursor.passed = u64::MAX >> cursor.ahead.leading_zeros();
                    return true;
                }
                let first = cursor.chunk * 64;
                let words = &self.words[first..self.words.len().min(first + 64)];
                self.marks.retire(cursor.chunk, words);
                cursor.is_in_chunk = false;
                (cursor.chunk, cursor.passed) = (cursor.chunk + 1, 0);
            }
            let Some(chunk) = self.marks.next_chunk(cursor.chunk) else {
                return false;
            };
            if chunk != cursor.chunk {
                (cursor.chunk, cursor.passed) = (chunk, 0);
            }
            cursor.is_in_chunk = true;
            if chunk >= cursor.read {
                cursor.read = self.read_ahead(chunk, ahead);
            }
        }
    }

    /// Reads the words of `chunk` and of some after it, so that they are in the cache when they are needed. Returns the chunk
    /// after these.
    fn read_ahead(&self, chunk: usize, ahead: &mut impl FnMut(usize) -> u64) -> usize {
        let (mut end, mut read) = (chunk, 0);
        for _ in 0..CHUNKS_AHEAD {
            let Some(chunk) = self.marks.next_chunk(end) else {
                break;
            };
            end = chunk + 1;
            let marks = self.marks.of(chunk);
            if marks.count_ones() > FEW_MARKS {
                break;
            }
            for index in bits_of(marks).map(|bit| chunk * 64 + bit) {
                read |= self.words[index].load(Ordering::Relaxed) | ahead(index);
            }
        }
        // The compiler would leave out what is not used.
        std::hint::black_box(read);
        end
    }

    /// Clears `bits` of a word and returns those of them that were set.
    pub fn clear(&self, index: usize, bits: u64) -> u64 {
        if self.load_marked(index) & bits == 0 {
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
        let mut added = 0;
        for (index, mask) in word_masks(range) {
            let before = self.words[index].fetch_or(mask, Ordering::AcqRel);
            added += u64::from((mask & !before).count_ones());
        }
        self.added.fetch_add(added, Ordering::Relaxed);
        let (first, last) = (range.first() / 64, (range.end() - 1) / 64);
        let words = PageRange::new(first, last - first + 1).into_iter();
        for (chunk, marks) in words.flat_map(word_masks) {
            self.marks.set(chunk, marks);
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

    /// Moves all pages to `into`, in which they are `first` higher; pages past its end are dropped. Returns how many they were.
    pub fn move_into(&self, into: &Self, first: u64) -> u64 {
        let (mut cursor, mut inserter, mut count) = (Cursor::from_word(0), Inserter::new(into), 0);
        let place = |index: usize| first + index as u64 * 64;
        let ahead = |index: usize| {
            let word = into.words.get((place(index) / 64) as usize);
            word.map_or(0, |word| word.load(Ordering::Relaxed))
        };
        while let Some(index) = self.next(&mut cursor, ahead) {
            let bits = self.claim(index);
            count += u64::from(bits.count_ones());
            inserter.insert(place(index), bits);
        }
        inserter.finish();
        count
    }

    /// Sets the bits of `words`, whose lowest is page `first`.
    fn insert_words(&self, first: u64, words: impl Iterator<Item = u64>) -> u64 {
        let (mut inserter, mut count) = (Inserter::new(self), 0);
        for (at, word) in (0..).zip(words).filter(|(_, word)| *word != 0) {
            count += u64::from(word.count_ones());
            inserter.insert(first + at * 64, word);
        }
        inserter.finish();
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

    /// How often a page was set that was not, since the bitmap was made. Less work than [`MigrationBitmap::count`] before and
    /// after a harvest.
    pub(crate) fn added(&self) -> u64 {
        self.added.load(Ordering::Relaxed)
    }

    /// Clears at most `most` pages that follow each other, the first that are set of the 64 pages of word `index`, from page `from` of
    /// these on. Returns them, and pages of the word that were cleared with them and are to be set again.
    pub(crate) fn claim_run(&self, index: usize, from: u32, most: u32) -> Option<(PageRange, u64)> {
        let bits = self.load(index) & u64::MAX.checked_shl(from)?;
        if bits == 0 {
            return None;
        }
        let first = bits.trailing_zeros();
        let count = (bits >> first).trailing_ones().min(most);
        let mask = (u64::MAX >> (64 - count)) << first;
        let claimed = self.clear(index, mask);
        // Another thread may have come between: only the first run of what is left is taken.
        let first = claimed.trailing_zeros().min(63);
        let count = (claimed >> first).trailing_ones();
        if count == 0 {
            return None;
        }
        let kept = (u64::MAX >> (64 - count)) << first;
        let range = PageRange::new(index as u64 * 64 + u64::from(first), count.into())?;
        Some((range, claimed & !kept))
    }

    /// The runs of pages that are set, ascending, at the time when each word is reached.
    pub fn runs(&self) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        let of_words =
            (self.occupied()).flat_map(|index| runs_of_word(index as u64 * 64, self.load(index)));
        for run in of_words {
            let before = runs.last_mut().filter(|last| last.end() == run.first());
            let joined = before.and_then(|last| {
                *last = PageRange::new(last.first(), last.count() + run.count())?;
                Some(())
            });
            if joined.is_none() {
                runs.push(run);
            }
        }
        runs
    }

    /// Pages that are set.
    pub fn count(&self) -> u64 {
        let pages = |word: &AtomicU64| u64::from(word.load(Ordering::Relaxed).count_ones());
        let next = |chunk| self.marks.next_chunk(chunk);
        let chunks = std::iter::successors(next(0), |chunk| next(chunk + 1));
        let in_chunk = |chunk: usize| -> u64 {
            let words = &self.words[chunk * 64..self.words.len().min(chunk * 64 + 64)];
            match self.marks.of(chunk) {
                marks if marks.count_ones() > FEW_MARKS => words.iter().map(pages).sum(),
                marks => bits_of(marks).map(|bit| pages(&words[bit])).sum(),
            }
        };
        chunks.map(in_chunk).sum()
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

/// Sets words of a bitmap in ascending order, and marks each chunk once.
struct Inserter<'a> {
    into: &'a MigrationBitmap,
    /// A chunk, and those of its words that were set and have no mark yet.
    chunk: usize,
    marks: u64,
    added: u64,
}

impl<'a> Inserter<'a> {
    fn new(into: &'a MigrationBitmap) -> Self {
        Self {
            into,
            chunk: 0,
            marks: 0,
            added: 0,
        }
    }

    /// Sets the pages `bits`, whose lowest bit is page `first`.
    #[inline]
    fn insert(&mut self, first: u64, bits: u64) {
        let (index, shift) = ((first / 64) as usize, first % 64);
        self.set(index, bits << shift);
        if shift != 0 {
            self.set(index + 1, bits >> (64 - shift));
        }
    }

    #[inline]
    fn set(&mut self, index: usize, bits: u64) {
        let into = self.into;
        if bits == 0 || index >= into.words.len() {
            return;
        }
        let bits = bits & into.valid_bits(index);
        let before = into.words[index].fetch_or(bits, Ordering::AcqRel);
        self.added += u64::from((bits & !before).count_ones());
        if index / 64 != self.chunk {
            self.mark();
            self.chunk = index / 64;
        }
        self.marks |= 1 << (index % 64);
    }

    fn mark(&mut self) {
        if self.marks != 0 {
            self.into
                .marks
                .set(self.chunk, std::mem::take(&mut self.marks));
        }
    }

    fn finish(mut self) {
        self.mark();
        self.into.added.fetch_add(self.added, Ordering::Relaxed);
    }
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
mod tests;
