// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bitmap does what a naive one does.

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

    #[test]
    fn a_walk_that_stops_at_every_word_leaves_no_mark_of_what_it_claimed(
        pages in 1u64..40_000,
        inserts in proptest::collection::vec((0u64..40_000, 1u64..5000), 0..5),
        left in proptest::collection::vec(0usize..700, 0..3),
    ) {
        let map = MigrationBitmap::new(pages);
        for (first, count) in inserts {
            map.insert(PageRange::new(first, count).unwrap());
        }
        let mut cursor = Cursor::from_word(0);
        while let Some(index) = map.next(&mut cursor, |_| 0) {
            if !left.contains(&index) { map.claim(index); }
        }
        for index in 0..map.word_count() {
            prop_assert_eq!(map.marks.may_have(index), map.load(index) != 0, "word {}", index);
        }
        if map.count() == 0 {
            prop_assert_eq!(map.marks.next_chunk(0), None);
        }
    }

    #[test]
    fn what_is_moved_is_there_once_and_counted_as_added(
        first in 0u64..300,
        pages in 1u64..20_000,
        moved in proptest::collection::vec((0u64..15_000, 1u64..300), 0..6),
        before in proptest::collection::vec((0u64..15_000, 1u64..300), 0..6),
    ) {
        let (from, into) = (MigrationBitmap::new(15_000), MigrationBitmap::new(pages));
        let mut expected: BitVec<u64, Lsb0> = BitVec::repeat(false, 16_000.max(pages as usize));
        for (page, count) in before {
            into.insert(PageRange::new(page, count).unwrap());
            expected[page as usize..(page + count) as usize].fill(true);
        }
        for (page, count) in moved {
            from.insert(PageRange::new(page, count).unwrap());
        }
        let moved = from.to_bits();
        moved.iter_ones().for_each(|page| expected.set(page + first as usize, true));
        expected.truncate(pages as usize);
        prop_assert_eq!(from.move_into(&into, first), moved.count_ones() as u64);
        prop_assert_eq!(from.count(), 0);
        prop_assert_eq!(into.count(), expected.count_ones() as u64);
        prop_assert_eq!(into.added(), into.count());
        prop_assert_eq!(into.to_bits(), expected);
    }
}
