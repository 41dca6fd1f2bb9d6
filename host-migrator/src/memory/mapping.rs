// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where guest memory is mapped.

use std::ops::Range;

use spec::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// A run of the guest's pages, and the address where a process has it mapped. The same pages may be mapped more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    address: u64,
    pages: PageRange,
}

impl Mapping {
    /// Where `memory` is mapped in this process, one for each region. It must stay mapped for as long as its faults are
    /// handled.
    pub fn all_of<B: Bitmap + 'static>(memory: &GuestMemoryMmap<B>) -> Vec<Self> {
        let regions = memory.iter().filter_map(|region| {
            let pages = PageRange::inside(region.start_addr().0, region.len())?;
            Self::new(region.as_ptr() as u64, pages)
        });
        regions.collect()
    }

    /// `pages` at `address` of another process. `None` if the address is not that of a page, or the end overflows.
    pub fn in_another_process(address: u64, pages: PageRange) -> Option<Self> {
        Self::new(address, pages)
    }

    fn new(address: u64, pages: PageRange) -> Option<Self> {
        address.checked_add(pages.bytes())?;
        (address.is_multiple_of(PAGE_SIZE)).then_some(Self { address, pages })
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its pages.
    pub fn pages(&self) -> PageRange {
        self.pages
    }

    /// The part of it that has pages of `range`.
    pub(crate) fn part(&self, range: PageRange) -> Option<Self> {
        let pages = self.pages.intersection(range)?;
        let address = self.address_of(pages.first());
        Some(Self { address, pages })
    }

    /// The address of `page`, which it has.
    pub(crate) fn address_of(&self, page: u64) -> u64 {
        self.address + (page - self.pages.first()) * PAGE_SIZE
    }

    /// The addresses of its bytes.
    pub(crate) fn bytes(&self) -> Range<u64> {
        self.address..self.address + self.pages.bytes()
    }

    /// The page at `address`, if it has that.
    pub(crate) fn page_at(&self, address: u64) -> Option<u64> {
        let bytes = self.bytes();
        bytes
            .contains(&address)
            .then(|| self.pages.first() + (address - bytes.start) / PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_mapping_keeps_the_addresses_of_its_pages() {
        let pages = PageRange::new(100, 10).unwrap();
        let mapping = Mapping::in_another_process(0x10000, pages).unwrap();
        assert_eq!(mapping.page_at(0x10000 + 3 * PAGE_SIZE + 17), Some(103));
        assert_eq!(mapping.page_at(0xffff), None);
        assert_eq!(mapping.page_at(0x10000 + 10 * PAGE_SIZE), None);
        let part = mapping.part(PageRange::new(105, 50).unwrap()).unwrap();
        assert_eq!(part.address(), 0x10000 + 5 * PAGE_SIZE);
        assert_eq!(part.pages(), PageRange::new(105, 5).unwrap());
        assert_eq!(mapping.part(PageRange::new(110, 1).unwrap()), None);
    }

    #[test]
    fn an_address_inside_a_page_or_at_the_end_of_the_world_is_refused() {
        let pages = PageRange::new(0, 2).unwrap();
        assert!(Mapping::in_another_process(0x10001, pages).is_none());
        assert!(Mapping::in_another_process(u64::MAX - 4095, pages).is_none());
    }
}
