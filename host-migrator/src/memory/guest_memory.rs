// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the engine uses it on either side.

use std::io;
use std::sync::Arc;

use spec::PageRange;

use super::error::RamError;
use super::holes::HoleBudget;
use super::layout::Layout;
use super::ram_region::RamRegion;

/// Guest memory.
///
/// [`GuestRam`](crate::GuestRam), made of memory files, is the kind to prefer. A VMM that has only a mapping can
/// implement the trait for it. What it loses: holes are not found, so memory that was never touched is read (and takes
/// memory of the host then), and a balloon's pages are looked at like others.
pub trait GuestMemory: Send + Sync {
    /// Where it lies.
    fn layout(&self) -> &Layout;

    /// Copies the pages of `range` into `out`, which has their size. The guest may be writing them: each page may be
    /// torn, and the dirty log then has it.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] if the pages are not in one region.
    fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError>;

    /// Writes `content`, which has their size, to the pages of `range`. They are in one region.
    ///
    /// # Errors
    /// [`RamError`] if the pages are not in one region, or the host has no memory for them.
    fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError>;

    /// Makes the pages of `range` zero, and gives their memory back to the host if it can.
    ///
    /// # Errors
    /// [`RamError`] if that cannot be done; the migration then fails.
    fn discard(&self, range: PageRange) -> Result<(), RamError>;

    /// Whether it takes writes of one thread at a time, as a memory file does: the kernel lets one write to a file.
    fn is_written_by_one(&self) -> bool {
        false
    }

    /// Whether all of it is known to be zero, without a look at it. A destination then need not clear it for a guest, and it keeps
    /// the memory of the host that it has.
    fn is_known_zero(&self) -> bool {
        false
    }

    /// Calls `found` with pages that read as zero as nobody has written them since they were made or discarded. True if
    /// these are all of them; false if `budget` was used up before, or it cannot know.
    ///
    /// # Errors
    /// [`RamError`] if the search fails.
    fn find_holes(
        &self,
        budget: &mut HoleBudget<'_>,
        found: &mut dyn FnMut(PageRange),
    ) -> Result<bool, RamError> {
        let _ = (budget, found);
        Ok(false)
    }

    /// The memory files that hold it, one for each region of its layout, to be lent to a destination on this host
    /// ([`MigrationParams::local`](crate::MigrationParams::local)). `None` if it is not in memory files.
    ///
    /// # Errors
    /// [`io::Error`] if a descriptor cannot be duplicated.
    fn files(&self) -> io::Result<Option<Vec<RamRegion>>> {
        Ok(None)
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for Arc<M> {
    fn layout(&self) -> &Layout {
        self.as_ref().layout()
    }

    fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        self.as_ref().read(range, out)
    }

    fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        self.as_ref().write(range, content)
    }

    fn discard(&self, range: PageRange) -> Result<(), RamError> {
        self.as_ref().discard(range)
    }

    fn is_written_by_one(&self) -> bool {
        self.as_ref().is_written_by_one()
    }

    fn is_known_zero(&self) -> bool {
        self.as_ref().is_known_zero()
    }

    fn find_holes(
        &self,
        budget: &mut HoleBudget<'_>,
        found: &mut dyn FnMut(PageRange),
    ) -> Result<bool, RamError> {
        self.as_ref().find_holes(budget, found)
    }

    fn files(&self) -> io::Result<Option<Vec<RamRegion>>> {
        self.as_ref().files()
    }
}
