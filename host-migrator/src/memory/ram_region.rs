// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A region of guest memory in its memory file.

use std::fs::File;
use std::io;

use spec::PAGE_SIZE;

use super::sealed_file::sealed_file;

/// The file system of huge pages, from `linux/magic.h`.
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;

/// A run of guest memory: `len` bytes from guest-physical `gpa`, at `offset` of `file`.
#[derive(Debug)]
pub struct RamRegion {
    /// Guest-physical start; a multiple of the page size.
    pub gpa: u64,
    /// Bytes; a multiple of the page size.
    pub len: u64,
    /// The memory file (memfd) that holds it.
    pub file: File,
    /// Where in the file it starts.
    pub offset: u64,
}

impl RamRegion {
    /// A region of zeros in a new memory file, which is sealed against shrinking.
    ///
    /// # Errors
    /// [`io::Error`] if the kernel refuses the file or its size.
    pub fn new(gpa: u64, len: u64) -> io::Result<Self> {
        Ok(Self {
            gpa,
            len,
            file: sealed_file("guest-memory", len)?,
            offset: 0,
        })
    }

    /// The same region, with another descriptor of its file.
    ///
    /// # Errors
    /// [`io::Error`] if the descriptor cannot be duplicated.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            ..*self
        })
    }

    /// Bytes of the pages that the kernel has in the file: more than [`PAGE_SIZE`] on hugetlbfs.
    pub(super) fn host_page_bytes(&self) -> io::Result<u64> {
        let system = rustix::fs::fstatfs(&self.file)?;
        let huge = system.f_type == HUGETLBFS_MAGIC;
        let block = u64::try_from(system.f_bsize).unwrap_or(PAGE_SIZE);
        Ok(if huge && block.is_power_of_two() {
            block.max(PAGE_SIZE)
        } else {
            PAGE_SIZE
        })
    }
}
