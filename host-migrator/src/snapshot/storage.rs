// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a snapshot is written to.

use std::fmt;
use std::io;
use std::path::Path;

/// What a snapshot is written to. Places count from the snapshot's header. What is written is certainly on the disk after the
/// next [`Storage::sync`] only. A storage that is dropped before [`Storage::publish`] leaves no snapshot.
///
/// Several threads may write at once, but never to the same place.
pub trait Storage: fmt::Debug + Send + Sync {
    /// The name under which the snapshot will be found.
    fn path(&self) -> &Path;

    /// Whether the place may have an older snapshot, which must be ended first.
    fn is_in_place(&self) -> bool;

    /// `length` bytes will be written, and more may follow. A file that has its length from the beginning is written faster by
    /// several threads. What nobody has written reads as zero.
    ///
    /// # Errors
    /// That of the file.
    fn expect(&self, length: u64) -> io::Result<()> {
        let _ = length;
        Ok(())
    }

    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// That of the file.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Writes whole pages at `at`, which is a multiple of their size. Nobody reads them soon, so they need not stay in the page
    /// cache.
    ///
    /// # Errors
    /// That of the file.
    fn write_pages(&self, content: &[u8], at: u64) -> io::Result<()> {
        self.write(content, at)
    }

    /// Pages will be written one after the other in the `length` bytes at `at`, but maybe not all of them: finds room for them, if
    /// `spare` bytes more stay free. What nobody has written there reads as zero. Returns whether it has done so; a storage that is not
    /// faster then need not.
    fn reserve(&self, at: u64, length: u64, spare: u64) -> bool {
        let _ = (at, length, spare);
        false
    }

    /// From now on [`Storage::write_pages`] gets pages that a running guest has written again, round after round. They may stay in
    /// the page cache: only then the rounds become shorter although the guest writes faster than the disk.
    fn expect_rewrites(&self) {}

    /// Fills `bytes` with what was written at `at`. Never asked for pages.
    ///
    /// # Errors
    /// That of the file.
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// The `length` bytes at `at` are not needed: their room may be given back. What is read there afterwards has no meaning.
    ///
    /// # Errors
    /// That of the file. A file system that cannot do it is no error.
    fn give_back(&self, at: u64, length: u64) -> io::Result<()>;

    /// Waits until everything that was written is on the disk. It must not be called again after an error: the kernel tells of a
    /// lost write once.
    ///
    /// # Errors
    /// That of the file, also for an earlier write.
    fn sync(&self) -> io::Result<()>;

    /// The snapshot is complete and on the disk: from now on, and also after a power cut, it is found at [`Storage::path`].
    ///
    /// # Errors
    /// That of the file or its folder.
    fn publish(&self) -> io::Result<()>;
}
