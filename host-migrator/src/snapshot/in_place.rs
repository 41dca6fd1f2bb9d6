// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot inside a file that exists, or on a block device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use spec::PAGE_SIZE;

use super::error::SnapshotError;
use super::file::{lock, open, punch};
use super::storage::Storage;

/// A place in a file or block device.
#[derive(Debug)]
pub struct InPlace {
    file: File,
    path: PathBuf,
    base: u64,
}

impl InPlace {
    /// Opens and locks the file at `path`, for a snapshot whose header is at `base`.
    ///
    /// # Errors
    /// [`SnapshotError`] if it cannot be opened, is in use, or is not a file.
    pub fn open(path: &Path, base: u64) -> Result<Self, SnapshotError> {
        if !base.is_multiple_of(PAGE_SIZE) {
            return Err(SnapshotError::Offset(base));
        }
        let file = open(path, OFlags::RDWR)?;
        lock(&file, FlockOperation::NonBlockingLockExclusive, path)?;
        Ok(Self {
            file,
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

    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.base + at)
    }

    fn give_back(&mut self, at: u64, length: u64) -> io::Result<()> {
        punch(&self.file, self.base + at, length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn publish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
