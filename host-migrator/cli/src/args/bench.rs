// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of `lacuna bench`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use spec::PAGE_SIZE;

use super::bench_file::{self, FileArgs};
use super::bench_postcopy::{self, PostcopyArgs};
use crate::size::{Size, SizeError};

/// `lacuna bench`
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[command(subcommand)]
    pub job: BenchJob,
}

/// What can be measured.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchJob {
    /// How fast memory moves from one process to another on this machine, side by side with what the machine can do
    #[command(long_about = TRANSPORT)]
    Transport(TransportArgs),
    /// How fast this machine saves memory into a snapshot file and restores it, side by side with what its disk can do
    #[command(long_about = bench_file::ABOUT)]
    File(FileArgs),
    /// How long a guest waits for a page that is still to come, side by side with what the network and the kernel take at least
    #[command(long_about = bench_postcopy::ABOUT)]
    Postcopy(PostcopyArgs),
}

const TRANSPORT: &str = "\
How fast memory moves on this machine, side by side with what the machine can do.

Every arm moves the same memory over a loopback connection, one arm after the other, in as many turns as --runs says. \
The table shows each arm's median rate and range. A ratio is that of the two arms' rates in the same turn; its median is shown. \
After each arm all of the destination's memory is compared with the source's.

No guest runs: there is memory, and nobody writes it while it moves. `lacuna compare` measures real guests.";

const ARMS: &str = "\
Arms, joined by commas. Source and destination are threads of this process, except where another program is named. A rate counts \
bytes of memory, not bytes on the wire.

bare-scratch      a loop that sends memory over TCP, and one that receives it into a buffer of 1 MiB
bare-fresh        the same, and each MiB is written to a new memory file
bare-populated    the same, and the memory file has all its pages before the start
iperf3            iperf3 over TCP: its own buffers, no memory
lacuna-fresh      a whole migration over TCP into new memory
lacuna-populated  the same into memory that has all its pages before the start
lacuna-tls-fresh, lacuna-tls-populated
                  as these two, with TLS 1.3: certificates on both sides; the handshakes are in the time
lacuna-lz4, lacuna-zstd
                  a migration into new memory that compresses it, zstd at level 1
qemu-fresh        a whole migration by QEMU with multifd, over TCP into new memory; its own time. LACUNA_QEMU names the program
                  [default: qemu-system-x86_64]
bare-unix-fresh, bare-unix-populated, lacuna-unix-fresh, lacuna-unix-populated
                  the same over a unix socket";

/// `lacuna bench transport`
#[derive(Clone, Debug, Args)]
pub struct TransportArgs {
    /// Memory to move, a multiple of 4K. Source and destination each need as much
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
    /// Connections of each arm, each with a thread on either side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub channels: u16,
    /// Rate of the link, in millions of bits a second. The bench then runs in a network namespace of its own, whose loopback
    /// device the kernel limits; unix sockets know no limit. Needs the programs unshare, ip and tc
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub link_mbit: Option<u32>,
    /// The arms to run
    #[arg(long, value_enum, value_name = "ARM", value_delimiter = ',', hide_possible_values = true, default_values_t = ArmName::USUAL, long_help = ARMS)]
    pub arms: Vec<ArmName>,
    /// Write a picture (SVG) of all arms
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// Print one JSON object with every figure instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What is in the memory that is moved. No page is zero: a migration would not send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ContentKind {
    /// Random bytes, which do not compress
    #[default]
    Random,
    /// 8 random bytes of each 32; the others are the same in all of the page
    Compressible,
    /// Random and compressible pages, each with even chance
    Mixed,
}

/// A way to move memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArmName {
    /// A bare loop over TCP, into a buffer.
    BareScratch,
    /// A bare loop over TCP, into a new memory file.
    BareFresh,
    /// A bare loop over TCP, into a memory file that has all its pages.
    BarePopulated,
    /// iperf3.
    Iperf3,
    /// A migration over TCP into new memory.
    LacunaFresh,
    /// A migration over TCP into memory that has all its pages.
    LacunaPopulated,
    /// A migration over TCP into new memory, compressed with LZ4.
    LacunaLz4,
    /// A migration over TCP into new memory, compressed with Zstandard.
    LacunaZstd,
    /// A migration over TLS into new memory.
    LacunaTlsFresh,
    /// A migration over TLS into memory that has all its pages.
    LacunaTlsPopulated,
    /// QEMU with multifd over TCP, into new memory.
    QemuFresh,
    /// A bare loop over a unix socket, into a new memory file.
    BareUnixFresh,
    /// A bare loop over a unix socket, into a memory file that has all its pages.
    BareUnixPopulated,
    /// A migration over a unix socket into new memory.
    LacunaUnixFresh,
    /// A migration over a unix socket into memory that has all its pages.
    LacunaUnixPopulated,
}

impl ArmName {
    /// Those that run unless others are asked for.
    pub const USUAL: [Self; 10] = [
        Self::BareScratch,
        Self::BareFresh,
        Self::BarePopulated,
        Self::Iperf3,
        Self::LacunaFresh,
        Self::LacunaPopulated,
        Self::LacunaTlsFresh,
        Self::QemuFresh,
        Self::BareUnixFresh,
        Self::LacunaUnixFresh,
    ];

    /// The arms that this one is compared with.
    pub fn baselines(self) -> &'static [Self] {
        match self {
            Self::LacunaFresh => &[Self::BareFresh, Self::QemuFresh, Self::Iperf3],
            Self::LacunaPopulated => &[Self::BarePopulated, Self::Iperf3],
            Self::LacunaLz4 | Self::LacunaZstd => &[Self::LacunaFresh],
            Self::LacunaTlsFresh => &[Self::LacunaFresh],
            Self::LacunaTlsPopulated => &[Self::LacunaPopulated],
            Self::LacunaUnixFresh => &[Self::BareUnixFresh],
            Self::LacunaUnixPopulated => &[Self::BareUnixPopulated],
            Self::BareScratch
            | Self::BareFresh
            | Self::BarePopulated
            | Self::Iperf3
            | Self::QemuFresh
            | Self::BareUnixFresh
            | Self::BareUnixPopulated => &[],
        }
    }

    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl std::fmt::Display for ArmName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.name())
    }
}

/// Takes whole pages, and at least one.
pub(super) fn memory(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: SizeError| error.to_string())?;
    if size.0 == 0 || !size.0.is_multiple_of(PAGE_SIZE) {
        return Err("memory consists of pages of 4K: take a multiple of that".into());
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_whole_pages() {
        assert_eq!(memory("12K"), Ok(Size(12 << 10)));
        for text in ["0", "0B", "1B", "4097", "6K"] {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_help_explains_every_arm() {
        for arm in ArmName::value_variants() {
            assert!(ARMS.contains(&arm.name()), "{arm}");
        }
    }
}
