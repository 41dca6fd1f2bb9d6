// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory full of stamps, and what each of them must be.

use std::io;

use spec::stamp::{Stamp, StampError};
use thiserror::Error;

use crate::area::{Area, Page};

/// A page that does not hold the stamp last written to it.
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
    versions: Vec<u32>,
    seed: u64,
}

impl StampedPages {
    /// Takes `bytes` from the kernel and stamps every page.
    pub fn fill(bytes: usize, seed: u64) -> io::Result<Self> {
        let mut area = Area::map(bytes)?;
        for page in area.pages_mut() {
            stamp_of(page, 1).write(seed, page);
        }
        Ok(Self {
            versions: vec![1; area.pages().len()],
            area,
            seed,
        })
    }

    /// How many pages there are.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Checks the page at `index`, which must be below [`len`](Self::len).
    pub fn check(&self, index: usize) -> Result<(), WrongPage> {
        let page = &self.area.pages()[index];
        let stamp = stamp_of(page, self.versions[index]);
        stamp.check(self.seed, page).map_err(|found| WrongPage {
            address: stamp.address,
            version: stamp.version,
            found,
        })
    }

    /// Gives the page at `index` its next stamp. What it held before is checked first, but is replaced
    /// either way.
    pub fn rewrite(&mut self, index: usize) -> Result<(), WrongPage> {
        let checked = self.check(index);
        // Never 0, which no written page has.
        let version = self.versions[index].checked_add(1).unwrap_or(1);
        self.versions[index] = version;
        let page = &mut self.area.pages_mut()[index];
        stamp_of(page, version).write(self.seed, page);
        checked
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
}
