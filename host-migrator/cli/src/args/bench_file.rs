// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of `lacuna bench file`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use spec::PAGE_SIZE;

use super::bench::{ContentKind, memory};
use crate::control::DirectIoName;
use crate::size::Size;

pub(super) const ABOUT: &str = "\
How fast this machine saves memory into a snapshot file and restores it, side by side with what its disk can do.

Every turn runs each arm once: dd with oflag=direct at each block size; a save with each number of channels, with and without the page cache; \
QEMU's save (mapped-ram, multifd, direct-io) with as many channels, if QEMU is there and can do it (LACUNA_QEMU names the program \
[default: qemu-system-x86_64]); dd with iflag=direct into new memory; and a restore into new memory with each number of threads. A save \
counts from its beginning to the synced and renamed file; QEMU does not sync its file, so that the bench does it and counts it. The page cache is emptied of the file before each restore. After each \
restore, and after each save of the first turn, all memory is compared: to read every file again would take from the disk's speed in the next arm.

The ratio is that to the best dd in the same turn. No guest runs: there is memory, and nobody writes it while it is saved.";

/// `lacuna bench file`
#[derive(Clone, Debug, Args)]
pub struct FileArgs {
    /// Memory to save, a multiple of 4K
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
    pub size: Size,
    /// What is in the memory
    #[arg(long, value_enum, default_value_t)]
    pub content: ContentKind,
    /// Seed of the content
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Turns: how often each arm runs
    #[arg(long, value_name = "N", default_value = "5")]
    pub runs: NonZeroU32,
    /// Numbers of channels: threads that write or read
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16], value_parser = clap::value_parser!(u16).range(1..=128))]
    pub channels: Vec<u16>,
    /// Without the page cache, with it, or both
    #[arg(long, value_enum, value_name = "WHETHER", value_delimiter = ',', default_values = ["on", "off"])]
    pub direct_io: Vec<DirectIoName>,
    /// Block sizes of dd
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "256K,1M,4M,16M", value_parser = block)]
    pub block_sizes: Vec<Size>,
    /// Keep only every Nth page of the memory; the others are zero. With 2 no page has a neighbour in the file, so that each is written alone
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub stride: u64,
    /// Folder for the files: a disk is measured there
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub folder: PathBuf,
    /// Write a picture (SVG): rates over channels
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// Print one JSON object with every figure instead of the table
    #[arg(long)]
    pub json: bool,
}

/// Takes what direct I/O can move at once.
fn block(text: &str) -> Result<Size, String> {
    let size = memory(text)?;
    let most = 1 << 30;
    if size.0 > most || !size.0.is_multiple_of(PAGE_SIZE) {
        return Err("a block has at most 1G".into());
    }
    Ok(size)
}
