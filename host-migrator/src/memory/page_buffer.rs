// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Copies of pages on their way to a sink.

use spec::stream::MAX_SECTION_PAGES;
use spec::{PAGE_SIZE, PageRange};

use super::aligned::AlignedBytes;
use super::layout::Layout;

const BYTES: usize = (MAX_SECTION_PAGES * PAGE_SIZE) as usize;

/// Copies of at most [`MAX_SECTION_PAGES`] pages, and which pages they are. The copies are aligned for direct I/O.
#[derive(Debug)]
pub struct PageBuffer {
    runs: Vec<PageRange>,
    bytes: AlignedBytes,
    filled: usize,
}

impl Default for PageBuffer {
    fn default() -> Self {
        Self {
            runs: Vec::with_capacity(MAX_SECTION_PAGES as usize),
            bytes: AlignedBytes::zeroed(BYTES),
            filled: 0,
        }
    }
}

impl PageBuffer {
    /// How many pages are in it.
    pub fn pages(&self) -> u64 {
        self.filled as u64 / PAGE_SIZE
    }

    /// The runs of its pages.
    pub fn runs(&self) -> &[PageRange] {
        &self.runs
    }

    /// The pages' content, in the order of [`PageBuffer::runs`].
    pub fn content(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Room for the content of `pages` more pages, which must fit.
    pub(crate) fn room(&mut self, pages: u64) -> &mut [u8] {
        &mut self.bytes[self.filled..][..(pages * PAGE_SIZE) as usize]
    }

    /// Adds the pages of `run`, whose content is at the start of [`PageBuffer::room`]. Joins it to the run before if the two
    /// touch, unless it begins a region of `layout`.
    pub(crate) fn add(&mut self, run: PageRange, layout: &Layout) {
        self.filled += run.bytes() as usize;
        let before = self
            .runs
            .last_mut()
            .filter(|before| before.end() == run.first() && !layout.begins_region(run.first()));
        let joined = before.and_then(|before| {
            *before = PageRange::new(before.first(), before.count() + run.count())?;
            Some(())
        });
        if joined.is_none() {
            self.runs.push(run);
        }
    }

    /// Removes all pages.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.filled = 0;
    }
}
