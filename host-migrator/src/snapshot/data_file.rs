// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file that a snapshot is written to: its pages by direct I/O where the file system can do that.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, OFlags};
use spec::PAGE_SIZE;

use super::direct::{self, DirectIo};
use super::error::SnapshotError;
use super::file::unlock;

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
    /// Bytes of pages that were written through the page cache, to be dropped from it.
    cached: AtomicU64,
    /// Pages are written again.
    rewrites: AtomicBool,
}

/// Gives back the lock that whoever opened the file has on it.
impl Drop for DataFile {
    fn drop(&mut self) {
        unlock(&self.file);
    }
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
            rewrites: AtomicBool::new(false),
        })
    }

    /// The file, through the page cache.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// From now on pages are written again ([`Storage::expect_rewrites`](super::storage::Storage::expect_rewrites)).
    pub(super) fn expect_rewrites(&self) {
        self.rewrites.store(true, Ordering::Relaxed);
    }

    /// Finds room for the `length` bytes at `at` if they will be written directly and `spare` bytes more stay free, and returns whether it
    /// has. What goes through the page cache needs none: the file system finds room for much of it at once anyway.
    pub(super) fn reserve(&self, at: u64, length: u64, spare: u64) -> bool {
        let is_direct = self.direct.is_some() && !self.refused.load(Ordering::Relaxed);
        if !is_direct || self.rewrites.load(Ordering::Relaxed) {
            return false;
        }
        let free = rustix::fs::fstatvfs(&self.file).map_or(0, |it| it.f_bavail * it.f_frsize);
        free >= length.saturating_add(spare)
            && rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, at, length).is_ok()
    }

    /// Writes pages at `at`. The file is at `path`.
    pub(super) fn write_pages(&self, content: &[u8], at: u64, path: &Path) -> io::Result<()> {
        let is_aligned = (content.as_ptr().addr() as u64).is_multiple_of(PAGE_SIZE);
        let rewrites = self.rewrites.load(Ordering::Relaxed);
        let is_worth_it =
            self.wanted == DirectIo::On || (!rewrites && content.len() >= LEAST_DIRECT);
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
            // To wait for the disk now and then would be as slow as the disk.
            DirectIo::Auto if rewrites => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::aligned::AlignedBytes;
    use rustix::io::{ReadWriteFlags, preadv2};
    use std::io::IoSliceMut;
    use std::path::PathBuf;

    const BYTES: usize = 1 << 20;

    /// Whether the page at `at` is in the page cache.
    fn is_cached(file: &DataFile, at: u64) -> bool {
        let mut page = [0; PAGE_SIZE as usize];
        let into = &mut [IoSliceMut::new(&mut page)];
        preadv2(&file.file, into, at, ReadWriteFlags::NOWAIT).is_ok()
    }

    #[test]
    fn pages_that_a_guest_writes_again_do_not_wait_for_the_disk() {
        // Beside the program, where there is a disk; the folder for temporary files is often in memory.
        let folder = std::env::current_exe().unwrap().parent().map(PathBuf::from);
        let folder = tempfile::tempdir_in(folder.unwrap()).unwrap();
        let path = folder.path().join("file");
        for (wanted, later_is_cached) in [(DirectIo::Auto, true), (DirectIo::On, false)] {
            let file = File::options()
                .create(true)
                .truncate(true)
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            file.set_len(2 * BYTES as u64).unwrap();
            let file = match DataFile::new(file, &path, wanted) {
                Ok(file) if file.direct.is_some() => file,
                other => return println!("skipped: no direct I/O beside this program: {other:?}"),
            };
            let mut content = AlignedBytes::zeroed(BYTES);
            content.fill(1);
            file.write_pages(&content, 0, &path).unwrap();
            assert!(!is_cached(&file, 0), "{wanted:?}");
            file.expect_rewrites();
            file.write_pages(&content, BYTES as u64, &path).unwrap();
            assert_eq!(
                is_cached(&file, BYTES as u64),
                later_is_cached,
                "{wanted:?}"
            );
        }
    }
}
