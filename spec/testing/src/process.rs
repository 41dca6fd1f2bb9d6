// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What another process has, as `/proc` shows it.

use std::fs;
use std::io;

use crate::skipped;

/// What `read` finds of another process in `/proc`. Where only root may look, as into a process that cannot be dumped, this says
/// that a part of the calling test is skipped, and gives nothing: the same each time.
///
/// # Panics
/// For any other error.
pub fn seen_of_process<T: Default>(read: impl FnOnce() -> io::Result<T>) -> T {
    match read() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            skipped("what the process has open can only be seen by root");
            T::default()
        }
        seen => seen.expect("the process is there"),
    }
}

/// How many file descriptors the process `id` has open: none where only root may look.
///
/// # Panics
/// If there is no such process.
pub fn open_files(id: u32) -> usize {
    seen_of_process(|| Ok(fs::read_dir(format!("/proc/{id}/fd"))?.count()))
}

/// How many threads the process `id` has.
///
/// # Panics
/// If there is no such process.
pub fn threads(id: u32) -> usize {
    seen_of_process(|| Ok(fs::read_dir(format!("/proc/{id}/task"))?.count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_is_counted() {
        // The other tests of this program open files, too, but not so many.
        let before = open_files(std::process::id());
        let many: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null")).collect();
        assert!(open_files(std::process::id()) > before + 50);
        drop(many);
    }
}
