// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages that the next section brings, without those that are zero.

use std::io;

use spec::stream::{MAX_SECTION_PAGES, PagesPrefix, SectionKind, run_to_bytes};
use spec::{PAGE_SIZE, PageRange};

use super::link::Link;
use crate::memory::bitmap::runs_of_word;
use crate::memory::ram::{GuestRam, RamError};
use crate::memory::zero::is_zero;

const PAGE: usize = PAGE_SIZE as usize;

/// The pages of the next section.
///
/// They are copied out of guest memory first, into a buffer that stays in the cache: the guest goes on
/// writing, and the zero test, the checksum and the bytes on the wire must be of the same content.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    pages: usize,
    /// Pages of a section.
    most: u64,
    runs: Vec<PageRange>,
    table: Vec<u8>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; MAX_SECTION_PAGES as usize * PAGE],
            pages: 0,
            most: MAX_SECTION_PAGES,
            runs: Vec::with_capacity(MAX_SECTION_PAGES as usize),
            table: Vec::new(),
        }
    }

    /// Pages that are in it.
    pub(crate) fn pages(&self) -> u64 {
        self.pages as u64
    }

    /// Sets how many pages a section has, from 1 to [`MAX_SECTION_PAGES`]. It is empty.
    pub(crate) fn set_most(&mut self, pages: u64) {
        self.most = pages.clamp(1, MAX_SECTION_PAGES);
    }

    /// Pages that still fit.
    pub(crate) fn space(&self) -> u64 {
        self.most.saturating_sub(self.pages())
    }

    /// Adds the pages of `range`. With `find_zeros` those that are zero are not added, but returned, as bits
    /// from its first page. The range fits, and has at most 64 pages.
    pub(crate) fn fill(
        &mut self,
        ram: &GuestRam,
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

    /// Sends them; it is empty then.
    pub(crate) fn send(&mut self, link: &mut Link) -> io::Result<()> {
        let prefix = PagesPrefix {
            runs: self.runs.len() as u32,
            pages: self.pages as u32,
        };
        self.table.clear();
        self.table.extend(prefix.to_bytes());
        for run in &self.runs {
            self.table.extend(run_to_bytes(*run));
        }
        let pages = &self.bytes[..self.pages * PAGE];
        link.out.section(SectionKind::Pages, [&self.table, pages])?;
        self.pages = 0;
        self.runs.clear();
        Ok(())
    }
}
