// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of `lacuna bench postcopy`.

use std::num::NonZeroU32;

use clap::{Args, ValueEnum};

use super::bench::memory;
use crate::size::Size;

pub(super) const ABOUT: &str = "\
How long a guest waits for a page that is still to come, side by side with what the network and the kernel take at least.

Every turn runs each arm once. Source, destination and the threads that touch pages are in this process, and talk over TCP on the loopback device. \
A thread stands for a vCPU: it takes the same way, and leaving the guest comes on top for every arm. A wait is the time that a touch of a missing page takes. \
The ratios are those of the arms in the same turn; their median is shown. All pages that were touched, or that came, are compared with the source's.

No guest runs. `lacuna compare --postcopy at-once` measures real guests.";

const ARMS: &str = "\
Arms, joined by commas.

ping-pong         16 bytes go to another thread over TCP, and 4 KiB come back
bare-fault        a thread waits for a page, and another one answers with UFFDIO_COPY (userfaultfd)
bare-zero         the same with UFFDIO_ZEROPAGE
fault             a guest that was handed over waits for a page, and nothing else is sent
fault-pushing     the same while the rest of memory is sent as fast as the connection takes it
hinted            the same for a page that was hinted: nothing goes over the network
faults-1, faults-2, faults-3, faults-4
                  as `fault`, with so many threads that touch pages: how many pages a second come
push-1, push-4    nobody waits, and the rest of memory comes over so many channels through a link with --delay-ms and --window";

/// `lacuna bench postcopy`
#[derive(Clone, Debug, Args)]
pub struct PostcopyArgs {
    /// Memory of the guest, a multiple of 4K. Source and destination each need as much
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory)]
    pub size: Size,
    /// Pages that are touched, at random places; at most half of all
    #[arg(long, value_name = "N", default_value = "4000")]
    pub touches: NonZeroU32,
    /// Seed of the content and of the order
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Turns: how often each arm runs
    #[arg(long, value_name = "N", default_value = "5")]
    pub runs: NonZeroU32,
    /// Milliseconds that a byte takes on the link of the push arms, each way
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=10_000))]
    pub delay_ms: u64,
    /// Bytes that may be on their way on one connection of that link, as TCP's window limits them
    #[arg(long, value_name = "SIZE", default_value = "2M", value_parser = memory)]
    pub window: Size,
    /// The arms to run
    #[arg(long, value_enum, value_name = "ARM", value_delimiter = ',', hide_possible_values = true, default_values_t = PostcopyArm::ALL, long_help = ARMS)]
    pub arms: Vec<PostcopyArm>,
    /// Print one JSON object with every figure instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PostcopyArm {
    /// A request and 4 KiB back, over TCP.
    PingPong,
    /// The least answer to a fault.
    BareFault,
    /// The least answer with zeros.
    BareZero,
    /// The engine's answer.
    Fault,
    /// The same while the rest is pushed.
    FaultPushing,
    /// The engine's answer for a hinted page.
    Hinted,
    /// Pages a second of one thread.
    #[value(name = "faults-1")]
    Faults1,
    /// Of two.
    #[value(name = "faults-2")]
    Faults2,
    /// Of three.
    #[value(name = "faults-3")]
    Faults3,
    /// Of four.
    #[value(name = "faults-4")]
    Faults4,
    /// The rest, over one channel of a long link.
    #[value(name = "push-1")]
    Push1,
    /// Over four.
    #[value(name = "push-4")]
    Push4,
}

impl PostcopyArm {
    /// All of them, in the order of their runs.
    pub const ALL: [Self; 12] = [
        Self::PingPong,
        Self::BareFault,
        Self::BareZero,
        Self::Fault,
        Self::FaultPushing,
        Self::Hinted,
        Self::Faults1,
        Self::Faults2,
        Self::Faults3,
        Self::Faults4,
        Self::Push1,
        Self::Push4,
    ];

    /// As on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl std::fmt::Display for PostcopyArm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_explains_every_arm() {
        for arm in PostcopyArm::value_variants() {
            assert!(ARMS.contains(&arm.name()), "{arm}");
            assert!(PostcopyArm::ALL.contains(arm), "{arm}");
        }
    }
}
