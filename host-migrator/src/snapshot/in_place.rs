// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot inside a file that exists, or on a block device.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use spec::PAGE_SIZE;

use super::data_file::DataFile;
use super::direct::DirectIo;
use super::error::SnapshotError;
use super::file::{lock, open, punch, read};
use super::storage::Storage;

/// A place in a file or block device.
#[derive(Debug)]
pub struct InPlace {
    file: DataFile,
    path: PathBuf,
    base: u64,
}

impl InPlace {
    /// Opens and locks the file at `path`, for a snapshot whose header is at `base`.
    ///
    /// # Errors
    /// [`SnapshotError`] if it cannot be opened, is in use, is not a file, or the file system refuses `direct_io`.
    pub fn open(path: &Path, base: u64, direct_io: DirectIo) -> Result<Self, SnapshotError> {
        if !base.is_multiple_of(PAGE_SIZE) {
            return Err(SnapshotError::Offset(base));
        }
        let file = open(path, OFlags::RDWR)?;
        lock(&file, FlockOperation::NonBlockingLockExclusive, path)?;
        Ok(Self {
            file: DataFile::new(file, path, direct_io)?,
            path: path.to_owned(),
            base,
        })
    }
}

impl Storage for InPlace {
    fn path(&self) -> &Path {
        &self.path
    }

    fn is_in_place(&self) -> bool {
        true
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.file().write_all_at(bytes, self.base + at)
    }

    fn write_pages(&self, content: &[u8], at: u64) -> io::Result<()> {
        self.file.write_pages(content, self.base + at, &self.path)
    }

    fn reserve(&self, at: u64, length: u64, spare: u64) -> bool {
        self.file.reserve(self.base + at, length, spare)
    }

    fn expect_rewrites(&self) {
        self.file.expect_rewrites();
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        read(self.file.file(), bytes, self.base + at)
    }

    fn give_back(&self, at: u64, length: u64) -> io::Result<()> {
        punch(self.file.file(), self.base + at, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.file().sync_all()
    }

    fn publish(&self) -> io::Result<()> {
        Ok(())
    }
}
