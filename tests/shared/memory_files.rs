// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much host memory the guest's memory takes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;

/// The unit of a file's block count.
const BLOCK: u64 = 512;

/// Bytes that the memory files (memfd) of process `pid` have on the host: their size without their holes.
pub fn bytes_taken(pid: u32) -> io::Result<u64> {
    let (mut blocks, mut seen) = (0, HashSet::new());
    for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = file?.path();
        // The descriptor may have been closed meanwhile.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        if !target.to_string_lossy().starts_with("/memfd:") {
            continue;
        }
        let file = fs::metadata(&path)?;
        // A process may have many descriptors of one file.
        if seen.insert(file.st_ino()) {
            blocks += file.st_blocks();
        }
    }
    Ok(blocks * BLOCK)
}
