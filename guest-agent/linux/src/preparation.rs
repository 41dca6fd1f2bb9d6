// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest's user may let the agent do before the first map of a migration. Both cost the guest something,
//! so both are off unless asked for.

use std::fs;

/// What to do first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// Drop the clean page cache: fewer pages in use, but what is read again comes from the disk.
    pub drop_caches: bool,
    /// Compact memory: longer free runs, but the pages that move are written, and so sent again.
    pub compact: bool,
}

impl Preparation {
    /// Does it. A kernel that refuses costs the gain, not the migration.
    pub fn run(self) {
        // 1: the page cache only. Inodes and entries (2) are slow to drop and give little back.
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
