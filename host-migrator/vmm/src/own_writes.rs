// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The dirty log of this process's own writes to guest memory.

use std::sync::Arc;

use host_migrator::{DirtyLog, DirtyLogError, LogSource, MigrationBitmap};
use spec::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::memory::OwnMemory;

/// The pages of a region that this process has written since the last harvest. The log always runs. The cost of a harvest
/// depends on the number of written pages, not on the size of the region.
#[derive(Debug)]
pub struct OwnWrites(MigrationBitmap);

impl<'a> WithBitmapSlice<'a> for OwnWrites {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for OwnWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let first = offset as u64 / PAGE_SIZE;
        let end = (offset as u64)
            .saturating_add(len as u64)
            .div_ceil(PAGE_SIZE);
        if let Some(pages) = PageRange::new(first, end.saturating_sub(first)) {
            self.0.insert(pages);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.contains(offset as u64 / PAGE_SIZE)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl Default for OwnWrites {
    fn default() -> Self {
        Self(MigrationBitmap::new(0))
    }
}

impl NewBitmap for OwnWrites {
    fn with_len(len: usize) -> Self {
        Self(MigrationBitmap::new((len as u64).div_ceil(PAGE_SIZE)))
    }
}

/// The log of this process's writes to guest memory through [`OwnMemory`]. It always runs.
#[derive(Debug)]
pub struct OwnWritesLog {
    memory: Arc<OwnMemory>,
}

impl OwnWritesLog {
    /// The log of writes to `memory`.
    pub fn new(memory: Arc<OwnMemory>) -> Self {
        Self { memory }
    }
}

impl DirtyLog for OwnWritesLog {
    fn source(&self) -> LogSource {
        LogSource::OwnWrites
    }

    fn start(&mut self) -> Result<(), DirtyLogError> {
        for region in self.memory.iter() {
            let written = written_in(region);
            for index in written.occupied() {
                // Not a plain store: whoever clears a bit must see the write that set it.
                written.claim(index);
            }
        }
        Ok(())
    }

    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError> {
        let take = |region: &GuestRegionMmap<OwnWrites>| {
            let first = region.start_addr().raw_value() / PAGE_SIZE;
            written_in(region).move_into(bitmap, first)
        };
        Ok(self.memory.iter().map(take).sum())
    }

    fn stop(&mut self) -> Result<(), DirtyLogError> {
        Ok(())
    }
}

fn written_in(region: &GuestRegionMmap<OwnWrites>) -> &MigrationBitmap {
    &(**region).bitmap().0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MachineMemory, MemoryOptions};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn own_writes_are_harvested_once_and_none_from_before_the_start() {
        let memory = MachineMemory::new(100 * PAGE_SIZE, MemoryOptions::default()).unwrap();
        let mut log = OwnWritesLog::new(Arc::clone(memory.own()));
        let bitmap = MigrationBitmap::new(memory.ram().bitmap_pages());
        memory.own().write_slice(&[1], GuestAddress(0)).unwrap();
        log.start().unwrap();
        let across = GuestAddress(99 * PAGE_SIZE - 1);
        memory.own().write_slice(&[1, 2], across).unwrap();
        assert_eq!(log.harvest(&bitmap).unwrap(), 2);
        let expected = PageRange::new(98, 2).unwrap();
        assert!((0..100).all(|p| bitmap.contains(p) == (expected.first() <= p)));
        assert_eq!(log.harvest(&bitmap).unwrap(), 0);
    }
}
