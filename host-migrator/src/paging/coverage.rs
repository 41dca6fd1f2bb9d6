// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which parts of guest memory must be watched for faults.
//!
//! A part without content is not: the kernel answers its faults with zeros itself, at its own speed, and takes memory only for
//! what is touched. Parts are whole huge pages, so that a huge page which the kernel makes of such a fault never covers a page
//! that is still missing.

use spec::PageRange;

use crate::memory::bitmap::MigrationBitmap;

/// Pages of a huge page: 2 MiB.
pub(super) const HUGE: u64 = 512;
/// The most parts. Each splits a mapping, which takes the kernel about 5 µs before the guest runs.
const MOST: usize = 64;

/// The parts of `regions` that have pages of `content`, ascending. Huge pages are counted from a region's first page.
pub(super) fn watched(regions: &[PageRange], content: &MigrationBitmap) -> Vec<PageRange> {
    let mut parts: Vec<PageRange> = Vec::new();
    for region in regions {
        let mut last: Option<PageRange> = None;
        for word in content.occupied_from((region.first() / 64) as usize) {
            let first = word as u64 * 64;
            if first >= region.end() {
                break;
            }
            let Some(pages) = PageRange::new(first, 64).and_then(|word| word.intersection(*region))
            else {
                continue;
            };
            let Some(block) = around(pages, *region) else {
                continue;
            };
            last = match last {
                Some(open) if block.first() <= open.end() => {
                    PageRange::new(open.first(), block.end().max(open.end()) - open.first())
                }
                open => {
                    parts.extend(open);
                    Some(block)
                }
            };
        }
        parts.extend(last);
    }
    merge(parts, regions, MOST.max(regions.len()))
}

/// The huge pages of `region` that have `pages`.
fn around(pages: PageRange, region: PageRange) -> Option<PageRange> {
    let from = (pages.first() - region.first()) / HUGE * HUGE;
    let to = (pages.end() - region.first())
        .next_multiple_of(HUGE)
        .min(region.count());
    PageRange::new(region.first() + from, to - from)
}

/// At most `most` parts: the smallest gaps between two in one region are watched, too.
fn merge(parts: Vec<PageRange>, regions: &[PageRange], most: usize) -> Vec<PageRange> {
    if parts.len() <= most {
        return parts;
    }
    let are_in_one = |open: PageRange, next: PageRange| {
        let mut regions = regions.iter();
        regions.any(|region| {
            region.intersection(open).is_some() && region.intersection(next).is_some()
        })
    };
    let gap = |pair: &[PageRange]| match are_in_one(pair[0], pair[1]) {
        true => pair[1].first() - pair[0].end(),
        false => u64::MAX,
    };
    let mut gaps: Vec<u64> = parts.windows(2).map(gap).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    // As many gaps stay as there are parts but one. Gaps of this size and below are closed.
    let closed = gaps[most - 1];
    let mut merged: Vec<PageRange> = Vec::new();
    for part in parts {
        let into = merged
            .last_mut()
            .filter(|open| are_in_one(**open, part) && part.first() - open.end() <= closed);
        match into {
            Some(open) => {
                *open = PageRange::new(open.first(), part.end() - open.first()).unwrap_or(*open);
            }
            None => merged.push(part),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    fn content(of: &[u64]) -> MigrationBitmap {
        let content = MigrationBitmap::new(1 << 20);
        of.iter().for_each(|page| content.insert(pages(*page, 1)));
        content
    }

    #[test]
    fn memory_without_content_is_not_watched() {
        let regions = [pages(0, 4096), pages(8192, 1000)];
        assert_eq!(watched(&regions, &content(&[])), []);
        let found = watched(&regions, &content(&[0, 600, 3000, 8192 + 999]));
        assert_eq!(
            found,
            [pages(0, 1024), pages(2560, 512), pages(8192 + 512, 488)]
        );
    }

    #[test]
    fn content_in_too_many_places_is_watched_with_what_lies_between() {
        let regions = [pages(0, 1 << 19)];
        let spread: Vec<u64> = (0..400).map(|part| part * 1024).collect();
        let found = watched(&regions, &content(&spread));
        assert!(found.len() <= MOST, "{}", found.len());
        for page in spread {
            assert!(
                found
                    .iter()
                    .any(|part| part.intersection(pages(page, 1)).is_some())
            );
        }
    }

    proptest! {
        #[test]
        fn every_page_with_content_is_in_one_part_and_no_part_leaves_its_region(
            with in proptest::collection::vec(0u64..20_000, 0..60),
        ) {
            let regions = [pages(0, 5000), pages(5000, 3000), pages(10_240, 9_760)];
            let inside: Vec<u64> = with
                .into_iter()
                .filter(|page| regions.iter().any(|region| region.intersection(pages(*page, 1)).is_some()))
                .collect();
            let found = watched(&regions, &content(&inside));
            prop_assert!(found.windows(2).all(|pair| pair[0].end() <= pair[1].first()));
            for page in inside {
                let parts = found.iter().filter(|part| part.intersection(pages(page, 1)).is_some());
                prop_assert_eq!(parts.count(), 1);
            }
            for part in found {
                prop_assert!(regions.iter().any(|region| region.intersection(part) == Some(part)));
            }
        }
    }
}
