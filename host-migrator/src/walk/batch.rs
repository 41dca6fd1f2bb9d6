// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies of the pages to be sent next, without zero pages.

use spec::stream::MAX_SECTION_PAGES;
use spec::{PAGE_SIZE, PageRange};

use crate::memory::bitmap::runs_of_word;
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::memory::zero::is_zero;

const PAGE: usize = PAGE_SIZE as usize;

/// Copies of pages.
///
/// They are first copied out of guest memory into a buffer that stays in the cache: the guest goes on writing, but the
/// zero test, the checksum and the bytes on the wire must see the same content.
pub(super) struct Batch {
    bytes: Vec<u8>,
    pages: usize,
    /// The most pages that it may hold.
    most: u64,
    runs: Vec<PageRange>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; MAX_SECTION_PAGES as usize * PAGE],
            pages: 0,
            most: MAX_SECTION_PAGES,
            runs: Vec::with_capacity(MAX_SECTION_PAGES as usize),
        }
    }

    /// How many pages it holds.
    pub(super) fn pages(&self) -> u64 {
        self.pages as u64
    }

    /// Sets how many pages it may hold, from 1 to [`MAX_SECTION_PAGES`]. It must be empty.
    pub(super) fn set_most(&mut self, pages: u64) {
        self.most = pages.clamp(1, MAX_SECTION_PAGES);
    }

    /// Pages that still fit.
    pub(super) fn space(&self) -> u64 {
        self.most.saturating_sub(self.pages())
    }

    /// Adds the pages of `range`. With `find_zeros`, zero pages are not added but returned, as bits from the range's
    /// first page. The range must fit and have at most 64 pages.
    pub(super) fn fill(
        &mut self,
        ram: &dyn GuestMemory,
        range: PageRange,
        find_zeros: bool,
    ) -> Result<u64, RamError> {
        let start = self.pages * PAGE;
        let area = &mut self.bytes[start..start + range.count() as usize * PAGE];
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
            let run = PageRange::new(range.first() + run.first(), run.count());
            self.runs.extend(run);
        }
        self.pages += kept / PAGE;
        Ok(zero)
    }

    /// The runs of its pages, and their content in the same order.
    pub(super) fn content(&self) -> (&[PageRange], &[u8]) {
        (&self.runs, &self.bytes[..self.pages * PAGE])
    }

    /// Removes all pages.
    pub(super) fn clear(&mut self) {
        self.pages = 0;
        self.runs.clear();
    }
}
