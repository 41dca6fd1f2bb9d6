// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies of the pages to be sent next, without zero pages.

use spec::stream::MAX_SECTION_PAGES;
use spec::{PAGE_SIZE, PageRange};

use crate::memory::bitmap::runs_of_word;
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::memory::page_buffer::PageBuffer;
use crate::memory::zero::is_zero;

const PAGE: usize = PAGE_SIZE as usize;

/// Copies of pages.
///
/// They are first copied out of guest memory into a buffer that stays in the cache: the guest goes on writing, but the
/// zero test, the checksum and the bytes on the wire must see the same content.
pub(crate) struct Batch {
    copies: PageBuffer,
    /// The most pages that it may hold.
    most: u64,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            copies: PageBuffer::default(),
            most: MAX_SECTION_PAGES,
        }
    }

    /// How many pages it holds.
    pub(crate) fn pages(&self) -> u64 {
        self.copies.pages()
    }

    /// Sets how many pages it may hold, from 1 to [`MAX_SECTION_PAGES`]. It must be empty.
    pub(crate) fn set_most(&mut self, pages: u64) {
        self.most = pages.clamp(1, MAX_SECTION_PAGES);
    }

    /// Pages that still fit.
    pub(crate) fn space(&self) -> u64 {
        self.most.saturating_sub(self.pages())
    }

    /// Adds the pages of `range`. With `find_zeros`, zero pages are not added but returned, as bits from the range's
    /// first page. The range must fit and have at most 64 pages.
    pub(crate) fn fill(
        &mut self,
        ram: &dyn GuestMemory,
        range: PageRange,
        find_zeros: bool,
    ) -> Result<u64, RamError> {
        let area = self.copies.room(range.count());
        ram.read(range, area)?;
        let (pages, _) = area.as_chunks::<PAGE>();
        let zero = (pages.iter().enumerate())
            .filter(|(_, page)| find_zeros && is_zero(page))
            .fold(0, |zero, (index, _)| zero | 1u64 << index);
        let content = !zero & (u64::MAX >> (64 - range.count()));
        let mut kept = 0;
        for run in runs_of_word(0, content) {
            let from = run.first() as usize * PAGE;
            let length = run.bytes() as usize;
            if from != kept {
                area.copy_within(from..from + length, kept);
            }
            kept += length;
        }
        for run in runs_of_word(range.first(), content) {
            self.copies.add(run, ram.layout());
        }
        Ok(zero)
    }

    /// The copies.
    pub(crate) fn copies(&mut self) -> &mut PageBuffer {
        &mut self.copies
    }

    /// Removes all pages.
    pub(crate) fn clear(&mut self) {
        self.copies.clear();
    }
}
