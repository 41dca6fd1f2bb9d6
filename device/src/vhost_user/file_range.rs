// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A part of a file that the front end wants to have mapped: guest memory, or a dirty log.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FileType, fstat};

/// Refuses to map `size` bytes of `file` from `offset` on if it does not have them: an access beyond a file's
/// end raises a signal. A device that is mapped has no length to compare with.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if the range is empty, overflows, or is not there.
pub fn refuse_short(file: impl AsFd, offset: u64, size: u64) -> io::Result<()> {
    let refused = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
    let end = offset.checked_add(size);
    let end = end.filter(|end| size != 0 && *end <= i64::MAX as u64);
    let end = end.ok_or_else(|| refused("a file range that cannot be"))?;
    let status = fstat(file)?;
    let length = u64::try_from(status.st_size).unwrap_or(0);
    if FileType::from_raw_mode(status.st_mode) == FileType::RegularFile && end > length {
        return Err(refused("a file range beyond the file's end"));
    }
    Ok(())
}
