// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages the guest manages, and where its rings and tables are.
//!
//! The managed pages are numbered from 0; the numbers ignore the gap below 4 GiB. Below the managed pages are, in this
//! order from the end of the stacks: the balloon's rings, the table of states (a byte for each page) and the table of
//! versions (4 bytes for each page).

use lacuna_balloon_driver::{Balloon, Mmio};
use spec::bare::{BootInfo, HIGH_MEMORY_START};
use spec::{PAGE_SHIFT, PAGE_SIZE};

/// The map of the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLayout {
    /// Address of the balloon's rings.
    pub rings: u64,
    /// Address of the table of states.
    pub states: u64,
    /// Address of the table of versions.
    pub versions: u64,
    /// Page frame number of managed page 0.
    pub first: u64,
    /// Managed pages below the gap.
    pub low_pages: u64,
    /// All managed pages.
    pub pages: u64,
}

impl MemoryLayout {
    /// The map of the machine that `info` describes; `None` if its low memory is too small for the
    /// tables.
    pub fn new(info: &BootInfo) -> Option<Self> {
        let low_end = info.low_bytes >> PAGE_SHIFT;
        let high_pages = info.high_bytes >> PAGE_SHIFT;
        // The tables themselves take some of these pages, so they are slightly longer than needed.
        let at_most = low_end.checked_sub(info.stacks_end >> PAGE_SHIFT)? + high_pages;

        let rings = info.stacks_end.next_multiple_of(PAGE_SIZE);
        let states = (rings + Balloon::<Mmio>::MEMORY_BYTES as u64).next_multiple_of(PAGE_SIZE);
        let versions = (states + at_most).next_multiple_of(PAGE_SIZE);
        let first = (versions + 4 * at_most).div_ceil(PAGE_SIZE);
        let low_pages = low_end.checked_sub(first).filter(|&pages| pages > 0)?;
        Some(Self {
            rings,
            states,
            versions,
            first,
            low_pages,
            pages: low_pages + high_pages,
        })
    }

    /// The page frame number of managed page `index`.
    pub fn frame(&self, index: u64) -> u64 {
        match index.checked_sub(self.low_pages) {
            None => self.first + index,
            Some(above) => (HIGH_MEMORY_START >> PAGE_SHIFT) + above,
        }
    }

    /// Whether there is a gap in memory before managed page `index`.
    pub fn starts_region(&self, index: u64) -> bool {
        index == 0 || index == self.low_pages
    }
}
