// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all snapshot files need of the file system.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::SnapshotError;

/// Opens the regular file or block device at `path`. Never waits for the other end of a pipe.
pub(super) fn open(path: &Path, access: OFlags) -> Result<File, SnapshotError> {
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(file.map_err(|error| SnapshotError::io("open", path)(error.into()))?);
    let found = file
        .metadata()
        .map_err(SnapshotError::io("look at", path))?;
    let kind = found.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(file)
    } else {
        Err(SnapshotError::not_a_file(path, kind))
    }
}

/// Locks `file` for this process, if nobody else has it.
pub(super) fn lock(file: &File, how: FlockOperation, path: &Path) -> Result<(), SnapshotError> {
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(SnapshotError::Busy(path.to_owned())),
        Err(error) => Err(SnapshotError::io("lock", path)(error.into())),
    }
}

/// Gives back a lock that this process has on `file`. Without this it stays for as long as a child that was started meanwhile has a
/// copy of the descriptor: until its program begins.
pub(super) fn unlock(file: impl AsFd) {
    // Nothing can be done about a failure, and closing the file unlocks it, too.
    let _ = rustix::fs::flock(file, FlockOperation::Unlock);
}

/// Gives the room of `length` bytes at `at` back, where the file system can do that. It stays taken where not.
pub(super) fn punch(file: impl AsFd, at: u64, length: u64) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, punch, at, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        punched => Ok(punched?),
    }
}

/// Fills `bytes` with what is at `at`: zeros behind the end of the file.
pub(super) fn read(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, at) {
            Ok(0) => {
                bytes.fill(0);
                break;
            }
            Ok(count) => {
                bytes = &mut bytes[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
