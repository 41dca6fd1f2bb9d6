// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Direct I/O: pages go between memory and the disk without the page cache (`O_DIRECT`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use spec::PAGE_SIZE;

use super::error::SnapshotError;

/// Whether the pages of a file go through the page cache. Everything else of the file always does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// They do not, where the file system can do that, with two exceptions. Runs of less than 64 KiB are written through it, which
    /// is faster, and dropped from it when they are on the disk. Pages that a running guest writes again, after the first round, are
    /// written through it and stay: otherwise a guest that writes faster than the disk would never be saved. Where the file system
    /// cannot do it, a warning says so.
    #[default]
    Auto,
    /// They do not. A file system that cannot do that is an error.
    On,
    /// They do, and stay there as long as there is room.
    Off,
}

/// `struct statx` has the alignment of direct I/O (Linux 6.1).
const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);

/// Opens `file`, which is at `path`, once more, for direct I/O of its pages; `None`: its pages go through the page cache.
///
/// # Errors
/// [`SnapshotError::DirectIo`] if `wanted` insists and the file system refuses.
pub(super) fn open(
    file: &File,
    access: OFlags,
    path: &Path,
    wanted: DirectIo,
) -> Result<Option<File>, SnapshotError> {
    if wanted == DirectIo::Off {
        return Ok(None);
    }
    match try_open(file, access) {
        Ok(direct) => Ok(Some(direct)),
        Err(why) => refused(path, wanted, why).map(|()| None),
    }
}

/// The file system has refused direct I/O for the file at `path`.
///
/// # Errors
/// [`SnapshotError::DirectIo`] if `wanted` insists.
pub(super) fn refused(path: &Path, wanted: DirectIo, why: String) -> Result<(), SnapshotError> {
    let path = path.to_owned();
    let refusal = SnapshotError::DirectIo { path, why };
    if wanted == DirectIo::On {
        return Err(refusal);
    }
    log::warn!("{refusal}; its pages go through the page cache instead");
    Ok(())
}

/// Whether `error` is how a file system refuses a write or read that is not aligned as it needs.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// The file, or why not.
fn try_open(file: &File, access: OFlags) -> Result<File, String> {
    // By its descriptor: the name may mean another file by now.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = access | OFlags::DIRECT | OFlags::CLOEXEC;
    let direct = rustix::fs::open(name, flags, Mode::empty());
    let direct = direct.map_err(|error| io::Error::from(error).to_string())?;
    match alignment(&direct) {
        // An older kernel. The first page shows whether it goes.
        None => Ok(direct.into()),
        Some((0, _) | (_, 0)) => Err("the file system does not support it".into()),
        Some((memory, offset)) => {
            let fits = |alignment: u32| PAGE_SIZE.is_multiple_of(alignment.into());
            match fits(memory) && fits(offset) {
                true => Ok(direct.into()),
                false => Err(format!(
                    "it needs an alignment of {memory} bytes in memory and {offset} in the file, and pages have 4096"
                )),
            }
        }
    }
}

/// What direct I/O needs: the alignment in memory and in the file. Both are 0 where it is not supported. `None`: the kernel does not
/// say.
fn alignment(file: impl AsFd) -> Option<(u32, u32)> {
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, STATX_DIOALIGN).ok()?;
    let is_told = found.stx_mask & STATX_DIOALIGN.bits() != 0;
    is_told.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}
