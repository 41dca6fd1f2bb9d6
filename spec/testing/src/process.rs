// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `/proc` shows of another process.

use std::fs;
use std::io;

use crate::skipped;

/// What `read` finds about another process in `/proc`. If only root may see that, as with a process that cannot be
/// dumped, this prints that a part of the calling test is skipped, and returns the default.
///
/// # Panics
/// For any other error.
pub fn seen_of_process<T: Default>(read: impl FnOnce() -> io::Result<T>) -> T {
    match read() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            skipped("only root can see what the process has open");
            T::default()
        }
        seen => seen.expect("the process is there"),
    }
}

/// How many file descriptors the process `id` has open; 0 if only root may see that.
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
    fn open_files_are_counted() {
        // The other tests of this program open files, too, but fewer.
        let before = open_files(std::process::id());
        let many: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null")).collect();
        assert!(open_files(std::process::id()) > before + 50);
        drop(many);
    }
}
