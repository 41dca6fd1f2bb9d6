// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Room in the file that is reserved before the pages come. A file system that finds room for many pages at once writes them two to
//! three times faster by direct I/O than one that finds it write by write.

use spec::hint_map::word_masks;
use spec::{PAGE_SIZE, PageRange};

/// Shorter runs have no effect here: they are not written directly, or lie apart.
const LEAST_RUN: u64 = (64 << 10) / PAGE_SIZE;
/// So many pages have come one after the other before room for more is reserved.
const LEAST_SEQUENCE: u64 = (1 << 20) / PAGE_SIZE;
/// So many pages may be missing in a sequence.
const MOST_MISSING: u64 = LEAST_SEQUENCE;
/// Room is reserved for so many times the pages that have come one after the other. The kernel waits for all direct writes to the file
/// each time, so it should not be often.
const AHEAD: u64 = 8;
/// The fewest and the most pages that room is reserved for at once.
const LEAST_AT_ONCE: u64 = (64 << 20) / PAGE_SIZE;
const MOST_AT_ONCE: u64 = (1 << 30) / PAGE_SIZE;

/// Which slots have room of which nobody knows yet whether it is needed.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    /// The slots that pages came for one after the other.
    sequence: (u64, u64),
    /// All that were reserved. They may overlap.
    ranges: Vec<PageRange>,
    pages: u64,
    /// The file system cannot do it, or has too little room.
    stopped: bool,
}

impl Reserved {
    /// A run of `count` pages comes for `slot`, in a file with `slots` slots. Returns the slots to reserve before: several times as many as came one
    /// after the other until now.
    pub(super) fn wanted(&mut self, slot: u64, count: u64, slots: u64) -> Option<PageRange> {
        if self.stopped || count < LEAST_RUN {
            return None;
        }
        let (first, end) = self.sequence;
        let follows = (end..=end + MOST_MISSING).contains(&slot);
        let first = if follows { first } else { slot };
        self.sequence = (first, slot + count);
        let length = slot + count - first;
        let is_reserved = |range: &PageRange| range.first() <= slot && slot + count <= range.end();
        if length < LEAST_SEQUENCE || self.ranges.last().is_some_and(is_reserved) {
            return None;
        }
        let most = slots.saturating_sub(slot);
        let ahead = (AHEAD * length).clamp(LEAST_AT_ONCE, MOST_AT_ONCE);
        PageRange::new(slot, ahead.min(most))
    }

    /// The slots of `range` were reserved.
    pub(super) fn add(&mut self, range: PageRange) {
        self.pages += range.count();
        self.ranges.push(range);
    }

    /// How many slots were reserved. Some may count twice.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Reserves nothing any more.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Takes the reserved slots that have no bit in `bits`, in runs.
    pub(super) fn take_unused(&mut self, bits: &[u64]) -> Vec<PageRange> {
        let mut unused: Vec<PageRange> = Vec::new();
        for range in self.ranges.drain(..) {
            for (index, mask) in word_masks(range) {
                let mut clear = !bits[index] & mask;
                while clear != 0 {
                    let from = clear.trailing_zeros();
                    let count = (clear >> from).trailing_ones();
                    clear &= !(u64::MAX >> (64 - count) << from);
                    let first = index as u64 * 64 + u64::from(from);
                    join(&mut unused, first, u64::from(count));
                }
            }
        }
        unused
    }
}

/// Adds `count` slots from `first` on to `runs`, to the last one if they follow it.
fn join(runs: &mut Vec<PageRange>, first: u64, count: u64) {
    let before = runs.last().filter(|before| before.end() == first);
    let joined = before.and_then(|it| PageRange::new(it.first(), it.count() + count));
    match (joined, runs.last_mut()) {
        (Some(joined), Some(last)) => *last = joined,
        _ => runs.extend(PageRange::new(first, count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: u64 = 1 << 20;

    fn range(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    /// Gives `reserved` runs of `count` pages, with a gap of `gap` between them, and returns what it wanted.
    fn wanted(reserved: &mut Reserved, runs: u64, count: u64, gap: u64) -> Vec<PageRange> {
        let slots = (0..runs).map(|number| number * (count + gap));
        let mut all = Vec::new();
        for slot in slots {
            if let Some(range) = reserved.wanted(slot, count, SLOTS) {
                reserved.add(range);
                all.push(range);
            }
        }
        all
    }

    #[test]
    fn a_long_sequence_gets_ever_more_room_ahead_of_it() {
        let wanted = wanted(&mut Reserved::default(), 4000, 256, 0);
        assert!(wanted.len() < 8, "{wanted:?}");
        for pair in wanted.windows(2) {
            assert!(pair[0].first() < pair[1].first());
            assert!(pair[1].count() >= pair[0].count() || pair[1].end() == SLOTS);
        }
        assert!(wanted.iter().all(|range| range.end() <= SLOTS));
    }

    #[test]
    fn pages_that_lie_apart_get_no_room_ahead() {
        assert_eq!(wanted(&mut Reserved::default(), 1000, 1, 1), []);
        assert_eq!(wanted(&mut Reserved::default(), 100, 200, 1000), []);
        let mut stopped = Reserved::default();
        stopped.stop();
        assert_eq!(wanted(&mut stopped, 100, 256, 0), []);
    }

    #[test]
    fn what_is_reserved_and_has_no_page_is_found_in_runs() {
        let mut reserved = Reserved::default();
        reserved.add(range(10, 300));
        reserved.add(range(640, 64));
        let mut bits = vec![0; 12];
        for slot in (0..70).chain(100..130).chain(640..700) {
            bits[slot / 64] |= 1 << (slot % 64);
        }
        let unused = [range(70, 30), range(130, 180), range(700, 4)];
        assert_eq!(reserved.take_unused(&bits), unused);
        assert_eq!(reserved.take_unused(&bits), []);
    }
}
