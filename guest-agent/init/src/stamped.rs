// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory full of stamps, and the expected version of each.

use std::io;

use spec::stamp::{Stamp, StampError};
use thiserror::Error;

use crate::area::{Area, Page};

/// A page does not have its last stamp.
#[derive(Debug, Error)]
#[error("page {address:#x} should hold version {version}: {found:?}")]
pub struct WrongPage {
    address: u64,
    version: u64,
    found: StampError,
}

/// Pages that all carry a stamp: their own virtual address and the count of writes.
pub struct StampedPages {
    area: Area,
    /// One of this many pages of the area is in use; the others are free.
    spacing: usize,
    versions: Vec<u32>,
    seed: u64,
}

impl StampedPages {
    /// Takes `bytes` from the kernel and stamps every page.
    pub fn fill(bytes: usize, seed: u64) -> io::Result<Self> {
        Ok(Self::stamp(Area::map(bytes)?, seed))
    }

    /// Takes `bytes` from the kernel in single pages, stamps them all, and returns every second page, so that free memory is
    /// in pieces of one page.
    pub fn fill_every_second(bytes: usize, seed: u64) -> io::Result<Self> {
        let area = Area::map(bytes)?;
        area.use_small_pages()?;
        let mut pages = Self::stamp(area, seed);
        for index in (1..pages.len()).step_by(2) {
            pages.area.free_page(index)?;
        }
        pages.spacing = 2;
        pages.versions.truncate(pages.versions.len().div_ceil(2));
        Ok(pages)
    }

    fn stamp(mut area: Area, seed: u64) -> Self {
        for page in area.pages_mut() {
            stamp_of(page, 1).write(seed, page);
        }
        Self {
            spacing: 1,
            versions: vec![1; area.pages().len()],
            area,
            seed,
        }
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Checks the page at `index`, which must be below [`len`](Self::len).
    pub fn check(&self, index: usize) -> Result<(), WrongPage> {
        let page = &self.area.pages()[index * self.spacing];
        let stamp = stamp_of(page, self.versions[index]);
        stamp.check(self.seed, page).map_err(|found| WrongPage {
            address: stamp.address,
            version: stamp.version,
            found,
        })
    }

    /// Writes the next stamp of the page at `index`. The old stamp is checked first, and is replaced even if it is wrong.
    pub fn rewrite(&mut self, index: usize) -> Result<(), WrongPage> {
        let checked = self.check(index);
        // Never 0, which means that the page was not written.
        let version = self.versions[index].checked_add(1).unwrap_or(1);
        self.versions[index] = version;
        let page = &mut self.area.pages_mut()[index * self.spacing];
        stamp_of(page, version).write(self.seed, page);
        checked
    }
}

/// All memory that stays in use, as one range of indices: first the contiguous pages, then the fragmented ones.
pub struct MemoryInUse {
    whole: StampedPages,
    fragmented: StampedPages,
}

impl MemoryInUse {
    /// Combines the two.
    pub fn new(whole: StampedPages, fragmented: StampedPages) -> Self {
        Self { whole, fragmented }
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.whole.len() + self.fragmented.len()
    }

    /// As [`StampedPages::check`].
    pub fn check(&self, index: usize) -> Result<(), WrongPage> {
        match index.checked_sub(self.whole.len()) {
            None => self.whole.check(index),
            Some(index) => self.fragmented.check(index),
        }
    }

    /// As [`StampedPages::rewrite`].
    pub fn rewrite(&mut self, index: usize) -> Result<(), WrongPage> {
        match index.checked_sub(self.whole.len()) {
            None => self.whole.rewrite(index),
            Some(index) => self.fragmented.rewrite(index),
        }
    }
}

fn stamp_of(page: &Page, version: u32) -> Stamp {
    Stamp {
        address: page.as_ptr().addr() as u64,
        version: version.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_write_is_found_once_and_by_the_page_it_hit() {
        let mut pages = StampedPages::fill(16 << 12, 5).unwrap();
        let old = pages.area.pages()[3];
        pages.rewrite(3).unwrap();
        assert!((0..16).all(|index| pages.check(index).is_ok()));

        pages.area.pages_mut()[3] = old;
        let wrong: Vec<_> = (0..16)
            .filter(|&index| pages.check(index).is_err())
            .collect();
        assert_eq!(wrong, [3]);
        assert!(pages.rewrite(3).is_err());
        assert!(pages.check(3).is_ok());
    }

    #[test]
    fn of_fragmented_memory_every_second_page_is_zero_and_the_others_are_checked() {
        let mut pages = StampedPages::fill_every_second(5 << 12, 5).unwrap();
        assert_eq!(pages.len(), 3);
        let zero: Vec<_> = (0..5)
            .filter(|&index| pages.area.pages()[index].iter().all(|&word| word == 0))
            .collect();
        assert_eq!(zero, [1, 3]);
        assert!((0..3).all(|index| pages.rewrite(index).is_ok()));
        pages.area.pages_mut()[4][7] = 0;
        assert!(pages.check(2).is_err());
    }

    #[test]
    fn the_pages_of_both_kinds_of_memory_have_one_range_of_indices() {
        let whole = StampedPages::fill(2 << 12, 5).unwrap();
        let fragmented = StampedPages::fill_every_second(4 << 12, 5).unwrap();
        let mut pages = MemoryInUse::new(whole, fragmented);
        assert_eq!(pages.len(), 4);
        assert!((0..4).all(|index| pages.rewrite(index).is_ok()));
        assert_eq!(pages.whole.versions, [2, 2]);
        assert_eq!(pages.fragmented.versions, [2, 2]);
    }
}
