// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A set of guest pages, for a guest whose memory may be anywhere.
//!
//! It has one bit for each 4 KiB page, in chunks of 128 MiB of guest memory that exist only while a page of them is in the
//! set. So the cost depends on the pages in the set, not on the regions. A copy shares the chunks that neither side
//! changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use spec::PageRange;

/// Words of 64 pages in a chunk.
pub const CHUNK_WORDS: usize = 512;
/// Pages of a chunk: 128 MiB of guest memory.
pub const CHUNK_PAGES: u64 = CHUNK_WORDS as u64 * 64;

/// The bits of one chunk.
pub type Chunk = [u64; CHUNK_WORDS];

/// A set of 4 KiB guest pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparsePageSet {
    /// The chunks by number. No chunk is empty.
    chunks: BTreeMap<u64, Arc<Chunk>>,
    count: u64,
}

impl SparsePageSet {
    /// How many pages are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `page` is in the set.
    pub fn contains(&self, page: u64) -> bool {
        self.chunks
            .get(&(page / CHUNK_PAGES))
            .is_some_and(|chunk| chunk[word_of(page)] & 1 << (page % 64) != 0)
    }

    /// The bits of pages `64 * index ..`.
    pub fn word(&self, index: u64) -> u64 {
        let chunk = self.chunks.get(&(index / CHUNK_WORDS as u64));
        chunk.map_or(0, |chunk| chunk[(index % CHUNK_WORDS as u64) as usize])
    }

    /// Whether every page of `range` is in the set.
    pub fn contains_all(&self, range: PageRange) -> bool {
        pieces(range).all(|(number, piece)| {
            self.chunks
                .get(&number)
                .is_some_and(|chunk| words(piece).all(|(word, mask)| chunk[word] & mask == mask))
        })
    }

    /// Adds the pages of `range`. Returns how many were new.
    pub fn insert(&mut self, range: PageRange) -> u64 {
        let mut added = 0;
        for (number, piece) in pieces(range) {
            let chunk = self
                .chunks
                .entry(number)
                .or_insert_with(|| Arc::new([0; CHUNK_WORDS]));
            let chunk = Arc::make_mut(chunk);
            for (word, mask) in words(piece) {
                added += u64::from((mask & !chunk[word]).count_ones());
                chunk[word] |= mask;
            }
        }
        self.count += added;
        added
    }

    /// Adds the pages of `range`, except those that would need more than `chunks` chunks. Returns whether all were added.
    pub fn insert_within(&mut self, range: PageRange, chunks: usize) -> bool {
        for (number, (first, last)) in pieces(range) {
            if self.chunks.len() >= chunks && !self.chunks.contains_key(&number) {
                return false;
            }
            let start = number * CHUNK_PAGES + first;
            if let Some(piece) = PageRange::new(start, last - first + 1) {
                self.insert(piece);
            }
        }
        true
    }

    /// Removes the pages of `range`. Returns how many were in the set.
    pub fn remove(&mut self, range: PageRange) -> u64 {
        let mut removed = 0;
        for (number, piece) in pieces(range) {
            let Some(chunk) = self.chunks.get_mut(&number) else {
                continue;
            };
            let chunk = Arc::make_mut(chunk);
            let mut here = 0;
            for (word, mask) in words(piece) {
                here += u64::from((mask & chunk[word]).count_ones());
                chunk[word] &= !mask;
            }
            if here > 0 && chunk.iter().all(|word| *word == 0) {
                self.chunks.remove(&number);
            }
            removed += here;
        }
        self.count -= removed;
        removed
    }

    /// Removes all pages.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps only the pages of `ranges`, which are in rising order and do not overlap. Does not allocate memory.
    pub fn keep_only(&mut self, ranges: &[PageRange]) {
        let mut count = 0;
        self.chunks.retain(|number, chunk| {
            let (start, last) = (
                number * CHUNK_PAGES,
                number * CHUNK_PAGES + (CHUNK_PAGES - 1),
            );
            let from = ranges.partition_point(|range| range.end() <= start);
            let here = ranges[from..]
                .iter()
                .take_while(|range| range.first() <= last)
                .map(|range| {
                    let end = (range.end() - 1).min(last);
                    (range.first().max(start) - start, end - start)
                });
            let mut kept = [0; CHUNK_WORDS];
            for (word, mask) in here.flat_map(words) {
                kept[word] |= chunk[word] & mask;
            }
            if kept != **chunk {
                *Arc::make_mut(chunk) = kept;
            }
            let left: u64 = kept.iter().map(|word| u64::from(word.count_ones())).sum();
            count += left;
            left > 0
        });
        self.count = count;
    }

    /// The pages, as maximal runs in rising order.
    pub fn runs(&self) -> impl Iterator<Item = PageRange> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next_member(from)?;
            from = self.next_gap(first);
            PageRange::new(first, from - first)
        })
    }

    /// The chunks that are not empty, with their numbers, in ascending order.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.chunks
            .iter()
            .map(|(number, chunk)| (*number, &**chunk))
    }

    /// The first page from `from` on that is in the set.
    fn next_member(&self, from: u64) -> Option<u64> {
        let start = from / CHUNK_PAGES;
        self.chunks.range(start..).find_map(|(number, chunk)| {
            let skipped = if *number == start {
                from % CHUNK_PAGES
            } else {
                0
            };
            Some(number * CHUNK_PAGES + first_bit(skipped, |word| chunk[word])?)
        })
    }

    /// The first page from `from` on that is not in the set.
    fn next_gap(&self, from: u64) -> u64 {
        let mut from = from;
        while let Some(chunk) = self.chunks.get(&(from / CHUNK_PAGES)) {
            let start = from / CHUNK_PAGES * CHUNK_PAGES;
            match first_bit(from - start, |word| !chunk[word]) {
                Some(bit) => return start + bit,
                None => from = start + CHUNK_PAGES,
            }
        }
        from
    }
}

/// The pages whose bits are set in `chunk`, counted from its start, as maximal runs in ascending order.
pub fn runs_of(chunk: &Chunk) -> impl Iterator<Item = PageRange> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let first = first_bit(from, |word| chunk[word])?;
        from = first_bit(first, |word| !chunk[word]).unwrap_or(CHUNK_PAGES);
        PageRange::new(first, from - first)
    })
}

/// The index of the first set bit from `from` on in the words of a chunk.
fn first_bit(from: u64, word_at: impl Fn(usize) -> u64) -> Option<u64> {
    let first = word_of(from);
    if from >= CHUNK_PAGES {
        return None;
    }
    (first..CHUNK_WORDS).find_map(|word| {
        let skipped = if word == first { from % 64 } else { 0 };
        let bits = word_at(word) & u64::MAX << skipped;
        (bits != 0).then(|| word as u64 * 64 + u64::from(bits.trailing_zeros()))
    })
}

/// The word of its chunk that `page` is in.
fn word_of(page: u64) -> usize {
    (page % CHUNK_PAGES / 64) as usize
}

/// `range` cut at the borders of chunks: the chunk's number, and first and last bit in it.
fn pieces(range: PageRange) -> impl Iterator<Item = (u64, (u64, u64))> {
    let last = range.end() - 1;
    (range.first() / CHUNK_PAGES..=last / CHUNK_PAGES).map(move |number| {
        let start = number * CHUNK_PAGES;
        let first = range.first().saturating_sub(start);
        (number, (first, (last - start).min(CHUNK_PAGES - 1)))
    })
}

/// The words between two bits of a chunk, both included, each with the mask of its bits.
fn words((first, last): (u64, u64)) -> impl Iterator<Item = (usize, u64)> {
    (first / 64..=last / 64).map(move |word| {
        let low = first.saturating_sub(word * 64);
        let high = (last - word * 64).min(63);
        (word as usize, u64::MAX >> (63 - (high - low)) << low)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Ranges around the borders of words and chunks.
    fn range() -> impl Strategy<Value = PageRange> {
        let border = prop_oneof![
            Just(0),
            Just(64),
            Just(CHUNK_PAGES - 64),
            Just(CHUNK_PAGES),
            Just(3 * CHUNK_PAGES)
        ];
        (border, 0u64..130, 1u64..300)
            .prop_map(|(border, offset, count)| PageRange::new(border + offset, count).unwrap())
    }

    proptest! {
        /// Compared with a set of numbers.
        #[test]
        fn it_holds_what_a_set_of_page_numbers_holds(
            steps in proptest::collection::vec((any::<bool>(), range()), 1..20),
            kept in proptest::collection::vec(range(), 0..3),
        ) {
            let (mut set, mut numbers) = (SparsePageSet::default(), BTreeSet::new());
            for (put, range) in steps {
                let pages = range.first()..range.end();
                let (changed, expected) = if put {
                    (set.insert(range), pages.filter(|page| numbers.insert(*page)).count())
                } else {
                    (set.remove(range), pages.filter(|page| numbers.remove(page)).count())
                };
                prop_assert_eq!(changed, expected as u64);
                prop_assert_eq!(
                    set.contains_all(range),
                    (range.first()..range.end()).all(|page| numbers.contains(&page))
                );
            }
            let mut kept = kept;
            kept.sort_unstable();
            kept.dedup_by(|later, before| later.first() < before.end());
            let copy = set.clone();
            set.keep_only(&kept);
            prop_assert_eq!(copy.count(), numbers.len() as u64, "a copy stays as it is");
            prop_assert!(numbers.iter().all(|page| copy.contains(*page)));
            numbers.retain(|page| kept.iter().any(|kept| (kept.first()..kept.end()).contains(page)));
            prop_assert_eq!(set.count(), numbers.len() as u64);
            prop_assert!(numbers.iter().all(|page| set.contains(*page)));
            let runs: Vec<_> = set.runs().collect();
            let listed: Vec<_> = runs.iter().flat_map(|run| run.first()..run.end()).collect();
            prop_assert_eq!(listed, numbers.into_iter().collect::<Vec<_>>());
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first()));
        }
    }

    #[test]
    fn an_empty_set_keeps_no_memory() {
        let mut set = SparsePageSet::default();
        let all = PageRange::new(5, 3 * CHUNK_PAGES).unwrap();
        set.insert(all);
        set.remove(all);
        assert_eq!(set.chunks().count(), 0);
        assert_eq!(set, SparsePageSet::default());
    }

    #[test]
    fn a_set_with_a_bound_takes_more_pages_of_its_chunks_and_no_other_chunk() {
        let mut set = SparsePageSet::default();
        let range = |first, count| PageRange::new(first, count).unwrap();
        assert!(set.insert_within(range(CHUNK_PAGES - 1, 2), 2));
        assert!(set.insert_within(range(5, 7), 2));
        assert!(!set.insert_within(range(2 * CHUNK_PAGES - 1, 2), 2));
        assert_eq!(set.count(), 2 + 7 + 1, "up to the chunk that is too much");
        assert!(!set.insert_within(range(1 << 40, 1), 2));
        assert_eq!(set.chunks().count(), 2);
        set.remove(range(0, CHUNK_PAGES));
        assert!(set.insert_within(range(1 << 40, 1), 2));
    }

    #[test]
    fn the_last_page_numbers_fit() {
        let mut set = SparsePageSet::default();
        let last = PageRange::new(u64::MAX / 4096 - 1, 2).unwrap();
        assert_eq!(set.insert(last), 2);
        assert_eq!(set.runs().collect::<Vec<_>>(), [last]);
    }
}
