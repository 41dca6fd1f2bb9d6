// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the agent may do before the first map of a migration. Both actions have a cost for the guest, so both are off by
//! default.

use std::fs;

/// What to do first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// Drop the clean page cache. Fewer pages are in use, but data that is read again comes from the disk.
    pub drop_caches: bool,
    /// Compact memory. Free runs are longer, but the moved pages are written and so sent again.
    pub compact: bool,
}

impl Preparation {
    /// Does what is allowed. If the kernel refuses, only the gain is lost.
    pub fn run(self) {
        // 1: only the page cache. Inodes and dentries (2) are slow to drop and free little memory.
        if self.drop_caches {
            tell("/proc/sys/vm/drop_caches", "1");
        }
        if self.compact {
            tell("/proc/sys/vm/compact_memory", "1");
        }
    }
}

fn tell(path: &str, value: &str) {
    match fs::write(path, value) {
        Ok(()) => log::info!("{value} written to {path}"),
        Err(error) => log::warn!("cannot write {path}: {error}"),
    }
}
