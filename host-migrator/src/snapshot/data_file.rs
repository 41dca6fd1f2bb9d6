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

/// Bytes of pages that may be in the page cache, about, where it is used only because direct I/O is not there or slow.
const MOST_CACHED: u64 = 64 << 20;
/// After so many of them the disk begins to write.
const BEGIN_CACHED: u64 = MOST_CACHED / 8;
/// Fewer bytes than this are faster through the page cache: the kernel writes many such pieces at once, and has the file system find
/// room for all of them together.
const LEAST_DIRECT: usize = 64 << 10;

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
        let is_worth_it = self.wanted == DirectIo::On || content.len() >= LEAST_DIRECT;
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned && is_worth_it)
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
            DirectIo::Auto | DirectIo::On => self.drop_behind(content.len() as u64),
        }
    }

    /// Has the disk begin to write what is in the page cache now and then, and sometimes waits for it and takes what is written out
    /// of the page cache. `length` more bytes are in there. Otherwise the cache would take the memory of as many pages as the guest
    /// has.
    fn drop_behind(&self, length: u64) -> io::Result<()> {
        let before = self.cached.fetch_add(length, Ordering::Relaxed);
        let crosses = |step: u64| before / step != (before + length) / step;
        if crosses(MOST_CACHED) {
            // The error of a lost write is told once, and this ends the save.
            self.file.sync_data()?;
        }
        if crosses(BEGIN_CACHED) {
            // Dirty pages are not dropped: the kernel begins to write them. It is only advice, and a file system that cannot take it is
            // slower at most.
            let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        Ok(())
    }
}
