// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine of the bare-metal guest: its state at the start, and how guest and VMM communicate.
//!
//! The guest runs in 64-bit mode at privilege level 3 with paging on, I/O privilege level 3 and no
//! interrupts (some software KVMs run only that natively). All guest-physical memory, and the device
//! window, is mapped one to one. Every vCPU starts at the image's entry with
//! `rdi` = vCPU number, `rsi` = [`BOOT_INFO_GPA`], `rsp` = its own stack.
//!
//! | guest-physical | what |
//! |---|---|
//! | `0x1000 ..` | descriptor table, then page tables from `0x10000`, by the VMM |
//! | [`BOOT_INFO_GPA`] | [`BootInfo`], written by the VMM before the start |
//! | [`STATUS_GPA`] | [`StatusWord`]s, written by the guest |
//! | [`HEARTBEAT_GPA`] | a stamped page that the VMM writes every [`HEARTBEAT_MS`]: the VMM's own writes |
//! | [`GAPS_GPA`] `..` | the bins of each vCPU's [gaps](crate::gaps), written by the guest |
//! | [`READ_TIMES_GPA`] `..` | the bins of each vCPU's [read times](crate::gaps::ReadTimes), written by the guest |
//! | [`IMAGE_GPA`] `..` | the guest's image; stacks of [`STACK_BYTES`] a vCPU end at the info's `stacks_end` |
//! | [`MMIO_GPA`] | the virtio-mmio device (balloon), [`MMIO_BYTES`] |

/// Where [`BootInfo`] lies.
pub const BOOT_INFO_GPA: u64 = 0x7000;
/// Where the [`StatusWord`]s lie.
pub const STATUS_GPA: u64 = 0x8000;
/// The page that the VMM stamps.
pub const HEARTBEAT_GPA: u64 = 0x9000;
/// Milliseconds between two stamps of the heartbeat page.
pub const HEARTBEAT_MS: u64 = 10;
/// Where the bins of the vCPUs' gaps lie: 32-bit counters, [`GAPS_BYTES`] for each vCPU.
pub const GAPS_GPA: u64 = 0xa000;
/// Bytes of a vCPU's bins.
pub const GAPS_BYTES: u64 = crate::histogram::BINS as u64 * 4;
/// Where the bins of the vCPUs' [read times](crate::gaps::ReadTimes) lie: as many as those of the gaps, just below the image.
pub const READ_TIMES_GPA: u64 = IMAGE_GPA - MAX_VCPUS * GAPS_BYTES;
/// Where the image is loaded; it is linked for this address.
pub const IMAGE_GPA: u64 = 0x20_0000;
/// Bytes of each vCPU's stack.
pub const STACK_BYTES: u64 = 64 << 10;
/// The virtio-mmio device.
pub const MMIO_GPA: u64 = 0xd000_0000;
/// Bytes of the virtio-mmio window.
pub const MMIO_BYTES: u64 = 0x1000;
/// Low memory ends here at the latest and goes on at 4 GiB. The devices are in the gap.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Where guest memory goes on above the gap.
pub const HIGH_MEMORY_START: u64 = 1 << 32;
/// The most vCPUs.
pub const MAX_VCPUS: u64 = 16;

/// `out` of a byte: the serial console (an 8250's data register).
pub const PORT_CONSOLE: u16 = 0x3f8;
/// `out` of a u32: the vCPU sleeps that many microseconds (less if the VMM pauses it).
pub const PORT_SLEEP: u16 = 0x510;
/// `out` of a u32: an [`Event`].
pub const PORT_EVENT: u16 = 0x514;

/// What a guest announces on [`PORT_EVENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Event {
    /// Memory is filled and partly freed; the steady workload begins.
    Ready = 1,
    /// The guest cannot go on; the reason is on the console.
    Failed = 2,
}

/// When the guest returns a hinted page to its own allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum HoldPolicy {
    /// At DONE, like a guest without memory pressure.
    #[default]
    UntilDone = 0,
    /// As soon as it needs a page, without telling the device or waiting for it to take the hint. A guest under memory
    /// pressure may do this (virtio 1.2, 5.5.6.5).
    Early = 1,
}

/// How the guest answers a request for hints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum AnswerPolicy {
    /// As a good driver does.
    #[default]
    Prompt = 0,
    /// Never, like a guest without a driver.
    Silent = 1,
    /// As a good driver does, but only [`LATE_MS`] after it was asked.
    Late = 2,
    /// At [`SLOW_BYTES_PER_SECOND`].
    Slow = 3,
    /// As a good driver does, and then it hints the same pages again for ever.
    Flood = 4,
}

impl AnswerPolicy {
    /// Reads a value of [`BootInfo::answer`]; an unknown one is a good driver.
    pub const fn from_raw(raw: u64) -> Self {
        match raw {
            1 => Self::Silent,
            2 => Self::Late,
            3 => Self::Slow,
            4 => Self::Flood,
            _ => Self::Prompt,
        }
    }
}

/// How long a guest with [`AnswerPolicy::Late`] waits before it answers.
pub const LATE_MS: u64 = 5000;
/// How much memory a guest with [`AnswerPolicy::Slow`] hints a second.
pub const SLOW_BYTES_PER_SECOND: u64 = 10_000_000;

/// What the VMM tells the guest: [`BootInfo::WORDS`] 64-bit words at [`BOOT_INFO_GPA`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootInfo {
    /// Bytes of memory below [`LOW_MEMORY_END`], from 0.
    pub low_bytes: u64,
    /// Bytes of memory from [`HIGH_MEMORY_START`]; may be 0.
    pub high_bytes: u64,
    /// Where the stacks end: the first byte that the guest may manage.
    pub stacks_end: u64,
    /// vCPUs that are started.
    pub vcpus: u64,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u64,
    /// The seed of all random choices.
    pub seed: u64,
    /// Bytes that stay in use.
    pub in_use_bytes: u64,
    /// Bytes written once and then freed.
    pub freed_bytes: u64,
    /// Bytes a second that the workload writes to pages in use.
    pub dirty_rate: u64,
    /// Pages a second that the workload frees and allocates again.
    pub churn_rate: u64,
    /// A [`HoldPolicy`].
    pub hold: u64,
    /// An [`AnswerPolicy`].
    pub answer: u64,
    /// Not 0: once its memory is filled and partly freed, the guest only answers and keeps its time. It writes and checks nothing.
    pub idle: u64,
}

impl BootInfo {
    /// Words of the structure, including the magic word.
    pub const WORDS: usize = 14;
    /// The first word.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"LACUNABI");

    /// The words to write at [`BOOT_INFO_GPA`].
    pub const fn to_words(self) -> [u64; Self::WORDS] {
        [
            Self::MAGIC,
            self.low_bytes,
            self.high_bytes,
            self.stacks_end,
            self.vcpus,
            self.tsc_khz,
            self.seed,
            self.in_use_bytes,
            self.freed_bytes,
            self.dirty_rate,
            self.churn_rate,
            self.hold,
            self.answer,
            self.idle,
        ]
    }

    /// Reads what [`BootInfo::to_words`] wrote; `None` without the magic word.
    pub const fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        if words[0] != Self::MAGIC {
            return None;
        }
        Some(Self {
            low_bytes: words[1],
            high_bytes: words[2],
            stacks_end: words[3],
            vcpus: words[4],
            tsc_khz: words[5],
            seed: words[6],
            in_use_bytes: words[7],
            freed_bytes: words[8],
            dirty_rate: words[9],
            churn_rate: words[10],
            hold: words[11],
            answer: words[12],
            idle: words[13],
        })
    }
}

/// Words that the guest keeps current at [`STATUS_GPA`]; the variant is the word's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum StatusWord {
    /// [`STATUS_MAGIC`] once the words below are valid.
    Magic = 0,
    /// Where the table of [`PageState`]s lies: one byte a managed page.
    StateTable = 1,
    /// Where the table of versions lies: one `u32` a managed page, 0 for a page never stamped.
    VersionTable = 2,
    /// The first managed page frame number of the low region (the tables count from it).
    FirstPage = 3,
    /// Number of managed pages. The count ignores the gap below 4 GiB.
    Pages = 4,
    /// Pages in use now.
    InUse = 5,
    /// Stamps written since the start.
    Writes = 6,
    /// Stamps checked since the start.
    Checks = 7,
    /// Stamps that were wrong: memory was lost.
    WrongStamps = 8,
    /// Hint rounds begun.
    HintRounds = 9,
    /// Pages hinted.
    HintedPages = 10,
    /// Hinted pages that the guest reused before DONE.
    EarlyReleases = 11,
    /// How often the guest saw DONE.
    Dones = 12,
    /// Heartbeat pages that were wrong when read.
    WrongHeartbeats = 13,
    /// Full passes of the check over all pages in use since the start.
    FullPasses = 14,
}

impl StatusWord {
    /// How many words there are.
    pub const COUNT: usize = 15;

    /// Where the word lies.
    pub const fn gpa(self) -> u64 {
        STATUS_GPA + self as u64 * 8
    }
}

/// The first status word of a guest that is up.
pub const STATUS_MAGIC: u64 = u64::from_le_bytes(*b"LACUNAST");

/// The state of a managed page: one byte of the bare guest's state table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageState {
    /// Free: the guest does not need its content.
    Free = 0,
    /// Free and hinted: not used until DONE (or released early).
    Held = 1,
    /// In use: stamped with its own address and the version in the version table.
    InUse = 2,
    /// In use, and a vCPU is reading or writing it.
    Busy = 3,
    /// Allocated, and a vCPU is about to write it for the first time or is writing it. Until it is stamped, the version
    /// table has the version of its last stamp. If the page still holds that stamp, it was not written yet.
    Taken = 4,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_info_survives_a_round_trip() {
        let info = BootInfo {
            low_bytes: 1,
            high_bytes: 2,
            answer: 3,
            ..Default::default()
        };
        assert_eq!(BootInfo::from_words(info.to_words()), Some(info));
        assert_eq!(BootInfo::from_words([0; BootInfo::WORDS]), None);
    }
}
