// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The slots of pages: their numbers over all regions of guest memory.

use spec::{PAGE_SIZE, PageRange};

use crate::memory::error::RamError;
use crate::memory::layout::Layout;

/// The slots of a guest's pages.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    layout: Layout,
    /// The first slot of each region.
    first: Vec<u64>,
}

impl Slots {
    /// Of the pages of `layout`.
    pub(super) fn new(layout: Layout) -> Self {
        let regions = layout.regions().iter();
        let first = regions
            .scan(0, |next, region| {
                let first = *next;
                *next += region.count();
                Some(first)
            })
            .collect();
        Self { layout, first }
    }

    /// Where the guest's memory lies.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The slot of the first page of `range`. The others follow.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] if the pages are not in one region.
    pub(super) fn of(&self, range: PageRange) -> Result<u64, RamError> {
        let region = self.layout.check(range)?;
        Ok(self.first[region] + (range.first() - self.layout.regions()[region].first()))
    }

    /// The pages in `count` slots from `slot` on: a piece for each region.
    pub(super) fn pages(&self, slot: u64, count: u64) -> impl Iterator<Item = PageRange> {
        let regions = self.layout.regions().iter().zip(&self.first);
        regions.filter_map(move |(region, first)| {
            let from = slot.max(*first);
            let to = (slot + count).min(first + region.count());
            PageRange::new(
                region.first() + from.checked_sub(*first)?,
                to.checked_sub(from)?,
            )
        })
    }

    /// The guest-physical address of the page in `slot`.
    pub(super) fn gpa(&self, slot: u64) -> u64 {
        let mut pages = self.pages(slot, 1);
        pages.next().map_or(0, |page| page.first() * PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    #[test]
    fn slots_count_over_all_regions_and_lead_back_to_their_pages() {
        let regions = vec![pages(2, 10), pages(100, 5), pages(105, 1)];
        let slots = Slots::new(Layout::new(regions).unwrap());
        assert_eq!(slots.of(pages(2, 10)).unwrap(), 0);
        assert_eq!(slots.of(pages(101, 4)).unwrap(), 11);
        assert_eq!(slots.of(pages(105, 1)).unwrap(), 15);
        assert!(slots.of(pages(11, 2)).is_err());
        let found: Vec<_> = slots.pages(8, 8).collect();
        assert_eq!(found, [pages(10, 2), pages(100, 5), pages(105, 1)]);
        assert_eq!(slots.pages(16, 3).count(), 0);
        assert_eq!(slots.gpa(11), 101 * PAGE_SIZE);
    }
}
