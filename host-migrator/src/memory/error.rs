// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why guest memory cannot be used.

use std::io;

/// Guest memory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// A region that is empty, unaligned or overlaps another.
    #[error(
        "the guest's memory region at {gpa:#x} with {len:#x} bytes is empty, unaligned or overlaps another"
    )]
    Region {
        /// Its start.
        gpa: u64,
        /// Its bytes.
        len: u64,
    },
    /// Pages outside every region, or across two.
    #[error("pages {first:#x} to {end:#x} are not in one region of guest memory")]
    OutOfRange {
        /// First page frame number.
        first: u64,
        /// Page frame number after the last.
        end: u64,
    },
    /// There is no memory for pages: this destination takes the source's memory, or no guest.
    #[error(
        "this destination has no memory for pages: the source must lend its memory, in a local hand-over"
    )]
    LentOnly,
    /// The mapping or an operation on the memory file failed.
    #[error("guest memory: {0}")]
    Io(#[from] io::Error),
}
