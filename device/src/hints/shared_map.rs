// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory of a hint map: the migrator's file, mapped, or the device's own.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use spec::hint_map::{HintMap, HintMapError, Words, bytes_for};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Memory shared with the migrator or our own, as atomic words.
#[derive(Debug)]
pub struct SharedMap(MmapRegion);

/// A file that cannot serve as hint map.
#[derive(Debug, thiserror::Error)]
pub enum SharedMapError {
    /// The file's size or seals cannot be read.
    #[error("cannot examine the hint map's file: {0}")]
    Examine(#[from] rustix::io::Errno),
    /// The file is shorter than the migrator said.
    #[error("the hint map's file has {found} bytes, {claimed} were announced")]
    Short {
        /// Bytes of the file.
        found: u64,
        /// Bytes announced.
        claimed: u64,
    },
    /// The file could shrink later, and an access to it would then kill the device.
    #[error("the hint map's file is not sealed against shrinking")]
    NotSealed,
    /// The file cannot be mapped.
    #[error("cannot map the hint map: {0}")]
    Map(#[from] MmapRegionError),
    /// What the file contains is not a hint map.
    #[error(transparent)]
    Layout(#[from] HintMapError),
}

/// Maps `bytes` bytes of `file` and opens the hint map in them.
///
/// # Errors
/// [`SharedMapError`] for a file that is too short, can shrink, or holds no hint map.
pub fn open(file: OwnedFd, bytes: u64) -> Result<HintMap<SharedMap>, SharedMapError> {
    let found = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
    let short = SharedMapError::Short {
        found,
        claimed: bytes,
    };
    let Some(length) = usize::try_from(bytes).ok().filter(|_| bytes <= found) else {
        return Err(short);
    };
    if !fcntl_get_seals(&file)?.contains(SealFlags::SHRINK) {
        return Err(SharedMapError::NotSealed);
    }
    let region = MmapRegion::from_file(FileOffset::new(File::from(file), 0), length)?;
    Ok(HintMap::open(SharedMap(region))?)
}

/// A closed, empty map for `pages` pages that nobody shares: for a round that a person has started.
///
/// # Errors
/// [`SharedMapError`] if there is no memory for it.
pub fn private(pages: u64) -> Result<HintMap<SharedMap>, SharedMapError> {
    let too_small = HintMapError::TooSmall { pages };
    let length = bytes_for(pages).and_then(|bytes| usize::try_from(bytes).ok());
    let region = MmapRegion::new(length.ok_or(too_small)?)?;
    Ok(HintMap::format(SharedMap(region), pages)?)
}

impl SharedMap {
    /// All of a file that does not shrink.
    pub(crate) fn whole(file: File) -> Result<Self, SharedMapError> {
        let length = usize::try_from(fstat(&file)?.st_size).unwrap_or(0);
        Ok(Self(MmapRegion::from_file(
            FileOffset::new(file, 0),
            length,
        )?))
    }
}

impl Words for SharedMap {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.0.get_atomic_ref(index.checked_mul(8)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
        let file =
            memfd_create("hint map", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, bytes).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file
    }

    fn formatted(pages: u64) -> OwnedFd {
        let bytes = bytes_for(pages).unwrap();
        let file = memfd(bytes, SealFlags::SHRINK);
        let copy = File::from(file.try_clone().unwrap());
        let region = MmapRegion::from_file(FileOffset::new(copy, 0), bytes as usize).unwrap();
        HintMap::format(SharedMap(region), pages).unwrap();
        file
    }

    #[test]
    fn a_bit_that_one_side_sets_is_seen_by_the_other() {
        let file = formatted(1000);
        let bytes = bytes_for(1000).unwrap();
        let ours = open(file.try_clone().unwrap(), bytes).unwrap();
        let theirs = open(file, bytes).unwrap();
        ours.insert(spec::PageRange::new(65, 1).unwrap());
        assert_eq!(theirs.load(1).driver, 2);
    }

    #[test]
    fn a_file_that_can_shrink_is_refused() {
        let bytes = bytes_for(64).unwrap();
        let result = open(memfd(bytes, SealFlags::empty()), bytes);
        assert!(matches!(result, Err(SharedMapError::NotSealed)));
    }

    #[test]
    fn a_file_shorter_than_announced_is_refused() {
        let file = formatted(64);
        let bytes = bytes_for(64).unwrap();
        for claimed in [bytes + 1, u64::MAX] {
            let result = open(file.try_clone().unwrap(), claimed);
            assert!(matches!(result, Err(SharedMapError::Short { .. })));
        }
    }

    #[test]
    fn too_few_announced_bytes_or_none_are_refused() {
        let file = formatted(64);
        for claimed in [0, 8, 4096] {
            assert!(open(file.try_clone().unwrap(), claimed).is_err());
        }
    }
}
