// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file that a snapshot is written to: its pages by direct I/O where the file system can do that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, OFlags};
use spec::PAGE_SIZE;

use super::direct::{self, DirectIo};
use super::error::SnapshotError;

/// Bytes of pages that may be in the page cache, about, where it is used only because there is no direct I/O.
const MOST_CACHED: u64 = 64 << 20;

/// A file that is written.
#[derive(Debug)]
pub(super) struct DataFile {
    file: File,
    /// The same file without the page cache.
    direct: Option<File>,
    /// The file system has refused that after all.
    refused: AtomicBool,
    wanted: DirectIo,
    /// Bytes of pages that were written through the page cache since it was emptied last.
    cached: AtomicU64,
}

impl DataFile {
    /// Takes `file`, which is at `path`.
    ///
    /// # Errors
    /// [`SnapshotError::DirectIo`] if direct I/O is wanted and the file system refuses it.
    pub(super) fn new(file: File, path: &Path, wanted: DirectIo) -> Result<Self, SnapshotError> {
        Ok(Self {
            direct: direct::open(&file, OFlags::RDWR, path, wanted)?,
            file,
            refused: AtomicBool::new(false),
            wanted,
            cached: AtomicU64::new(0),
        })
    }

    /// The file, through the page cache.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes pages at `at`. The file is at `path`.
    pub(super) fn write_pages(&self, content: &[u8], at: u64, path: &Path) -> io::Result<()> {
        let is_aligned = (content.as_ptr().addr() as u64).is_multiple_of(PAGE_SIZE);
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned)
            && !self.refused.load(Ordering::Relaxed)
        {
            match direct.write_all_at(content, at) {
                Err(error) if direct::is_refusal(&error) => {
                    if !self.refused.swap(true, Ordering::Relaxed) {
                        let refused = direct::refused(path, self.wanted, error.to_string());
                        refused.map_err(io::Error::other)?;
                    }
                }
                written => return written,
            }
        }
        self.file.write_all_at(content, at)?;
        match self.wanted {
            DirectIo::Off => Ok(()),
            DirectIo::Auto | DirectIo::On => self.drop_behind(at, content.len() as u64),
        }
    }

    /// Has the disk begin to write the `length` bytes at `at`, and now and then waits for it and takes what is written out of the
    /// page cache. Otherwise the cache would take the memory of as many pages as the guest has.
    fn drop_behind(&self, at: u64, length: u64) -> io::Result<()> {
        // Dirty pages are not dropped: the kernel begins to write them.
        self.drop_range(at, length);
        let before = self.cached.fetch_add(length, Ordering::Relaxed);
        if before / MOST_CACHED != (before + length) / MOST_CACHED {
            // The error of a lost write is told once, and this ends the save.
            self.file.sync_data()?;
            self.drop_range(0, 0);
        }
        Ok(())
    }

    /// Drops clean pages in the `length` bytes at `at` from the page cache; 0 is all to the end.
    fn drop_range(&self, at: u64, length: u64) {
        // It is only advice, and a file system that cannot take it is slower at most.
        let length = length.try_into().ok();
        let _ = rustix::fs::fadvise(&self.file, at, length, Advice::DontNeed);
    }
}
