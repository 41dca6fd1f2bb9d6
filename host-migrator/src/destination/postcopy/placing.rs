// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory of a guest that runs, as a place for pages that are still missing there.

use std::io;

use spec::PageRange;

use crate::memory::error::RamError;
use crate::memory::layout::Layout;
use crate::memory::page_store::PageStore;
use crate::paging::Paging;

/// Takes the pages that are missing, and leaves all others as they are.
pub(super) struct Coming {
    pub(super) layout: Layout,
    pub(super) paging: Paging,
}

impl PageStore for Coming {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn place(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        self.layout.check(range)?;
        let placed = self.paging.arrived(range, content);
        placed.map_err(|error| RamError::Io(io::Error::other(error)))
    }

    fn make_zero(&self, range: PageRange) -> Result<(), RamError> {
        self.layout.check(range)?;
        self.paging.arrived_zero(range);
        Ok(())
    }

    /// The guest runs: what it has stays.
    fn clear(&self) -> Result<(), RamError> {
        Ok(())
    }
}
