// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What guest memory takes from the host.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;

/// The blocks that a file's size is counted in.
const BLOCK: u64 = 512;

/// Bytes that the memory files (memfd) of process `pid` have on the host: their size without their holes.
pub fn bytes_taken(pid: u32) -> io::Result<u64> {
    let (mut blocks, mut seen) = (0, HashSet::new());
    for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = file?.path();
        // A descriptor that was closed meanwhile is no memory file.
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
