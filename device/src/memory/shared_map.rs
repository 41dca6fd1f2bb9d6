// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory of a hint map: the migrator's mapped file, or the device's own memory.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use spec::hint_map::{HintMap, HintMapError, Words, bytes_for};
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::memory::lent_file::is_plain_memory;
use crate::memory::sigbus::{Guard, Share};

/// The most pages of a guest that a person can ask for hints: 16 TiB, for which a map takes at most 1 GiB. A front end
/// can lend a file of any size.
pub const MOST_PRIVATE_PAGES: u64 = 1 << 32;

/// Memory that is shared with the migrator, or the device's own, as atomic words.
#[derive(Debug)]
pub struct SharedMap {
    // Dropped first: see `Guard`. There is none if nobody else can change the memory.
    _guard: Option<Guard>,
    memory: MmapRegion,
}

/// Why a file cannot be a hint map.
#[derive(Debug, thiserror::Error)]
pub enum SharedMapError {
    /// The file's kind, size or seals cannot be read, or its mapping cannot be guarded.
    #[error("cannot examine the hint map's file: {0}")]
    Examine(#[from] io::Error),
    /// The file is shorter than the migrator said.
    #[error("the hint map's file has {found} bytes, but {claimed} were announced")]
    Short {
        /// Bytes of the file.
        found: u64,
        /// Bytes announced.
        claimed: u64,
    },
    /// The file could shrink later, and an access would then fail.
    #[error("the hint map's file is not sealed against shrinking")]
    NotSealed,
    /// The file is not a memory file, or has huge pages, which the host may not have when one is touched.
    #[error("the hint map's file is not a memfd with pages of the usual size")]
    Kind,
    /// The file cannot be mapped.
    #[error("cannot map the hint map: {0}")]
    Map(#[from] MmapRegionError),
    /// The content of the file is not a hint map.
    #[error(transparent)]
    Layout(#[from] HintMapError),
}

/// Maps `bytes` bytes of `file` and opens the hint map in them.
///
/// # Errors
/// [`SharedMapError`] for a file that is not a plain memfd, is too short, can shrink, or does not contain a hint map.
pub fn open(file: OwnedFd, bytes: u64) -> Result<HintMap<SharedMap>, SharedMapError> {
    // In this order, because only the size of a memory file can be read without the risk of hanging.
    if !is_plain_memory(&file)? {
        return Err(SharedMapError::Kind);
    }
    if !fcntl_get_seals(&file)
        .map_err(io::Error::from)?
        .contains(SealFlags::SHRINK)
    {
        return Err(SharedMapError::NotSealed);
    }
    let found = u64::try_from(fstat(&file).map_err(io::Error::from)?.st_size).unwrap_or(0);
    let length = usize::try_from(bytes).ok().filter(|_| bytes <= found);
    let length = length.ok_or(SharedMapError::Short {
        found,
        claimed: bytes,
    })?;
    let memory = MmapRegion::from_file(FileOffset::new(File::from(file), 0), length)?;
    let guard = Share::new(1)?.guard(memory.as_ptr(), memory.size(), None)?;
    Ok(HintMap::open(SharedMap {
        _guard: Some(guard),
        memory,
    })?)
}

/// A closed, empty map for `pages` pages that is not shared, for a round that a person has started.
///
/// # Errors
/// [`SharedMapError`] if there is no memory for it, or `pages` are more than [`MOST_PRIVATE_PAGES`].
pub fn private(pages: u64) -> Result<HintMap<SharedMap>, SharedMapError> {
    let too_small = HintMapError::TooSmall { pages };
    let length = bytes_for(pages)
        .filter(|_| pages <= MOST_PRIVATE_PAGES)
        .and_then(|bytes| usize::try_from(bytes).ok());
    // Not private memory: all of it would count against the process's limit before it is used.
    let memory = MmapRegion::build(
        None,
        length.ok_or(too_small)?,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    )?;
    Ok(HintMap::format(SharedMap::unguarded(memory), pages)?)
}

impl SharedMap {
    /// All of a file that does not shrink.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), length);
        Ok(Self::unguarded(memory.map_err(io::Error::other)?))
    }

    fn unguarded(memory: MmapRegion) -> Self {
        Self {
            _guard: None,
            memory,
        }
    }
}

impl Words for SharedMap {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.memory.get_atomic_ref(index.checked_mul(8)?).ok()
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
        HintMap::format(SharedMap::unguarded(region), pages).unwrap();
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

    #[test]
    fn a_file_of_huge_pages_or_on_a_file_system_is_refused() {
        let bytes = bytes_for(64).unwrap();
        let file: OwnedFd = File::open("/proc/self/exe").unwrap().into();
        assert!(matches!(open(file, bytes), Err(SharedMapError::Kind)));
        // Refused whether the host has a huge page to give or not.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        let Ok(file) = memfd_create("hint map", flags) else {
            return spec_testing::skipped("this kernel has no huge pages for memory files");
        };
        ftruncate(&file, 2 << 20).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert!(matches!(open(file, bytes), Err(SharedMapError::Kind)));
    }

    #[test]
    fn a_map_of_the_devices_own_is_for_a_guest_of_16_tib_at_most() {
        assert!(private(MOST_PRIVATE_PAGES).is_ok());
        assert!(private(MOST_PRIVATE_PAGES + 1).is_err());
        assert!(private(u64::MAX).is_err());
    }
}
