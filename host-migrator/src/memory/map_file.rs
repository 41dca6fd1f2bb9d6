// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory file of a hint map, mapped as atomic words.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use spec::hint_map::{HintMap, Words, bytes_for};
use spec::sync::AtomicU64;
#[cfg(not(loom))]
use vm_memory::VolatileMemory;
use vm_memory::{FileOffset, MmapRegion};

use crate::memory::sealed_file::sealed_file;

/// A new hint map, and the file that the device maps, too.
#[derive(Debug)]
pub(crate) struct MapFile {
    file: File,
    bytes: u64,
    map: HintMap<MapMemory>,
}

impl MapFile {
    /// Makes a closed, empty map for `pages` pages.
    pub(crate) fn new(pages: u64) -> io::Result<Self> {
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "too many pages");
        let bytes = bytes_for(pages).ok_or_else(too_large)?;
        let length = usize::try_from(bytes).map_err(|_| too_large())?;
        // Sealed, so that neither side can shrink the file while the other uses it.
        let file = sealed_file("hint-map", bytes)?;
        let offset = FileOffset::new(file.try_clone()?, 0);
        let memory = MmapRegion::from_file(offset, length).map_err(io::Error::other)?;
        let map = HintMap::format(MapMemory(memory), pages).map_err(io::Error::other)?;
        Ok(Self { file, bytes, map })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The map, when the file is no longer needed.
    pub(crate) fn into_map(self) -> HintMap<MapMemory> {
        self.map
    }
}

impl AsFd for MapFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Memory shared with the device, as atomic words.
#[derive(Debug)]
#[cfg_attr(loom, expect(dead_code))]
pub(crate) struct MapMemory(MmapRegion);

impl MapMemory {
    /// All of `file`.
    pub(crate) fn map(file: File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), length);
        memory.map(Self).map_err(io::Error::other)
    }
}

impl Words for MapMemory {
    #[cfg(not(loom))]
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.0.get_atomic_ref(index.checked_mul(8)?).ok()
    }

    /// loom's atomics cannot be in a file.
    #[cfg(loom)]
    fn word(&self, _index: usize) -> Option<&AtomicU64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_the_map_and_nobody_can_resize_it() {
        let file = MapFile::new(1000).unwrap();
        assert_eq!(file.file.metadata().unwrap().len(), file.bytes());
        assert!(file.file.set_len(0).is_err());
        assert!(file.file.set_len(1 << 20).is_err());
        assert_eq!(file.into_map().pages(), 1000);
    }

    #[test]
    fn more_pages_than_there_can_be_are_an_error() {
        assert!(MapFile::new(u64::MAX).is_err());
    }
}
