// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Direct I/O, as people and programs name it.

use host_migrator::DirectIo;
use serde::{Deserialize, Serialize};

/// Whether the pages of a snapshot file go through the page cache.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DirectIoName {
    /// They do not, where the file system can do that (O_DIRECT), and a warning says where it cannot. Runs of less than 64 KiB
    /// are written through the cache, which is faster, and dropped from it. What a running guest writes again after the first round
    /// goes through the cache: so a guest that writes faster than the disk is saved, too
    #[default]
    Auto,
    /// They do not; a file system that cannot do that is an error
    On,
    /// They do
    Off,
}

impl From<DirectIoName> for DirectIo {
    fn from(name: DirectIoName) -> Self {
        match name {
            DirectIoName::Auto => Self::Auto,
            DirectIoName::On => Self::On,
            DirectIoName::Off => Self::Off,
        }
    }
}
