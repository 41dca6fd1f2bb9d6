// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where there is memory: the spans of the kernel's zones, from `/proc/zoneinfo`. There are no page flags between them.

use std::fs;
use std::io;

use spec::PageRange;

/// The spans of all zones, merged into as few ranges as possible, in rising order.
///
/// # Errors
/// If the kernel's table cannot be read, or has no zone.
pub fn zones() -> io::Result<Vec<PageRange>> {
    let ranges = parse(&fs::read_to_string("/proc/zoneinfo")?);
    if ranges.is_empty() {
        let text = "/proc/zoneinfo has no zone with memory";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(ranges)
}

/// Every zone has lines `spanned N` and, later, `start_pfn: N`.
fn parse(text: &str) -> Vec<PageRange> {
    let mut ranges = Vec::new();
    let mut spanned = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (
            words.next(),
            words.next().and_then(|word| word.parse().ok()),
        ) {
            // A zone without memory may lack a start.
            (Some("Node"), _) => spanned = 0,
            (Some("spanned"), Some(pages)) => spanned = pages,
            (Some("start_pfn:"), Some(first)) => ranges.extend(from_whole_word(first, spanned)),
            _ => {}
        }
    }
    ranges.sort_unstable();
    join(ranges)
}

/// `count` pages from `first` on, and the pages before them in the same word of 64 pages, so that aligned pairs of pages
/// are read together. `None` for a zone without pages.
fn from_whole_word(first: u64, count: u64) -> Option<PageRange> {
    let before = first % 64;
    PageRange::new(first, count)?;
    PageRange::new(first - before, count + before)
}

/// Zones of several nodes may overlap.
fn join(sorted: Vec<PageRange>) -> Vec<PageRange> {
    let mut joined: Vec<PageRange> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.first() <= last.end() => {
                let end = last.end().max(range.end());
                *last = PageRange::new(last.first(), end - last.first()).unwrap_or(*last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    #[test]
    fn zones_that_touch_are_one_range_from_a_whole_word_on_and_an_empty_one_is_none() {
        let text = "Node 0, zone DMA\n  pages free 1\n        spanned  4095\n  start_pfn:           1\n\
                    Node 0, zone DMA32\n        spanned  1000\n  start_pfn:           4096\n\
                    Node 0, zone Movable\n        spanned  0\n  start_pfn:           0\n\
                    Node 0, zone Device\n        spanned  7\n\
                    Node 1, zone Normal\n        spanned  50\n  start_pfn:           9000\n";
        assert_eq!(parse(text), [range(0, 5096), range(8960, 90)]);
    }

    #[test]
    fn zones_of_two_nodes_that_overlap_are_read_once() {
        assert_eq!(
            join(vec![range(0, 10), range(5, 2), range(8, 6)]),
            [range(0, 14)]
        );
    }

    #[test]
    fn this_machine_has_zones() {
        assert!(!zones().unwrap().is_empty());
    }
}
