// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the hint map.

use super::layout::{PAGES_WORD, VERSION_WORD};
use super::*;
use crate::PageRange;
use crate::sync::AtomicU64;
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
        "the driver had hinted half of it"
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
        let mut found = Vec::new();
        map.hinted_words(|index| found.push((index, map.load(index))));
        found.retain(|(_, told)| told.pages() != 0);
        prop_assert_eq!(&found, &expected);
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
