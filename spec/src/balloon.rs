// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtio memory balloon: feature bits, configuration space, command ids and queue roles.
//!
//! Source: virtio 1.2, section 5.5 (device id 5). `virtio-bindings` has the id but none of these.

use crate::wire;

/// Feature bits (bit numbers), virtio 1.2 section 5.5.3. Bit 6 is not offered: what was HINT_WAIT_ON_ACK in patches for
/// Linux is DEVICE_INIT_REPORTED in those for the specification (virtio-spec#244).
pub mod feature {
    /// The guest tells the device before it reuses pages of the balloon.
    pub const MUST_TELL_HOST: u32 = 0;
    /// There is a statistics queue.
    pub const STATS_VQ: u32 = 1;
    /// The guest may deflate when it runs out of memory.
    pub const DEFLATE_ON_OOM: u32 = 2;
    /// Free page hinting: the queue this project is about.
    pub const FREE_PAGE_HINT: u32 = 3;
    /// The configuration space holds the guest's page poison value.
    pub const PAGE_POISON: u32 = 4;
    /// Free page reporting.
    pub const REPORTING: u32 = 5;
    /// virtio 1.0 or later.
    pub const VERSION_1: u32 = 32;
}

/// Memory statistics, virtio 1.2 section 5.5.6.4: an array of tags and values.
///
/// Sizes are in bytes, the others are counts. The tags after [`stat::HUGETLB_FAILURES`] are Linux's since 6.12.
pub mod stat {
    use crate::wire;

    /// Memory swapped in.
    pub const SWAP_IN: u16 = 0;
    /// Memory swapped out.
    pub const SWAP_OUT: u16 = 1;
    /// Page faults that needed I/O.
    pub const MAJOR_FAULTS: u16 = 2;
    /// Page faults that needed no I/O.
    pub const MINOR_FAULTS: u16 = 3;
    /// Memory that is not in use.
    pub const FREE_MEMORY: u16 = 4;
    /// All memory that the guest has.
    pub const TOTAL_MEMORY: u16 = 5;
    /// Memory that is available to new programs without swapping.
    pub const AVAILABLE_MEMORY: u16 = 6;
    /// Memory of caches that can be reclaimed without I/O.
    pub const DISK_CACHES: u16 = 7;
    /// Huge pages that were allocated.
    pub const HUGETLB_ALLOCATIONS: u16 = 8;
    /// Huge pages that could not be allocated.
    pub const HUGETLB_FAILURES: u16 = 9;
    /// Programs that the guest ended for lack of memory.
    pub const OOM_KILLS: u16 = 10;
    /// Allocations that had to wait for memory.
    pub const ALLOCATION_STALLS: u16 = 11;
    /// Memory that background reclaim scanned.
    pub const ASYNC_SCANS: u16 = 12;
    /// Memory that allocations scanned themselves.
    pub const DIRECT_SCANS: u16 = 13;
    /// Memory that background reclaim freed.
    pub const ASYNC_RECLAIMS: u16 = 14;
    /// Memory that allocations freed themselves.
    pub const DIRECT_RECLAIMS: u16 = 15;

    /// The names by rising tag, as the Linux headers give them.
    const NAMES: [&str; 16] = [
        "swap-in",
        "swap-out",
        "major-faults",
        "minor-faults",
        "free-memory",
        "total-memory",
        "available-memory",
        "disk-caches",
        "hugetlb-allocations",
        "hugetlb-failures",
        "oom-kills",
        "alloc-stalls",
        "async-scans",
        "direct-scans",
        "async-reclaims",
        "direct-reclaims",
    ];

    /// Bytes of an entry: tag and value, little-endian, without padding.
    pub const ENTRY_BYTES: usize = 10;

    /// The name of `tag`, or `None` if it is not known.
    pub fn name(tag: u16) -> Option<&'static str> {
        NAMES.get(usize::from(tag)).copied()
    }

    /// Reads tag and value.
    pub fn entry(bytes: &[u8; ENTRY_BYTES]) -> (u16, u64) {
        (wire::u16_at(bytes, 0), wire::u64_at(bytes, 2))
    }
}

/// Bytes of the whole configuration space.
pub const CONFIG_SIZE: usize = 16;

/// The configuration space, virtio 1.2 section 5.5.4: four little-endian words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Pages (4 KiB) the host wants in the balloon; at offset 0.
    pub num_pages: u32,
    /// Pages (4 KiB) the guest says are in the balloon; at offset 4, written by the guest.
    pub actual: u32,
    /// The command of free page hinting, see [`Command`]; at offset 8.
    pub free_page_hint_cmd_id: u32,
    /// What the guest fills free pages with; at offset 12, written by the guest.
    pub poison_val: u32,
}

impl Config {
    /// Offset of `actual`.
    pub const ACTUAL: usize = 4;
    /// Offset of `free_page_hint_cmd_id`.
    pub const CMD_ID: usize = 8;
    /// Offset of `poison_val`.
    pub const POISON: usize = 12;

    /// The bytes as the guest reads them.
    pub fn to_bytes(self) -> [u8; CONFIG_SIZE] {
        let mut bytes = [0; CONFIG_SIZE];
        wire::put(&mut bytes, 0, &self.num_pages.to_le_bytes());
        wire::put(&mut bytes, Self::ACTUAL, &self.actual.to_le_bytes());
        wire::put(
            &mut bytes,
            Self::CMD_ID,
            &self.free_page_hint_cmd_id.to_le_bytes(),
        );
        wire::put(&mut bytes, Self::POISON, &self.poison_val.to_le_bytes());
        bytes
    }

    /// Reads what [`Config::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; CONFIG_SIZE]) -> Self {
        Self {
            num_pages: wire::u32_at(bytes, 0),
            actual: wire::u32_at(bytes, Self::ACTUAL),
            free_page_hint_cmd_id: wire::u32_at(bytes, Self::CMD_ID),
            poison_val: wire::u32_at(bytes, Self::POISON),
        }
    }
}

/// A command id of one round of hinting: any number but the two reserved ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId(u32);

impl CommandId {
    /// The lowest id of a device; the same number that QEMU starts from, so that logs look familiar.
    pub const FIRST: Self = Self(0x8000_0000);

    /// An id that depends on `seed`, so that two devices, one after the other, begin with different ids.
    pub const fn spread(seed: u32) -> Self {
        Self(Self::FIRST.0 | seed)
    }

    /// Takes a number from the wire; `None` for the reserved [`Command::STOP`] and [`Command::DONE`].
    pub const fn new(raw: u32) -> Option<Self> {
        if raw == Command::STOP || raw == Command::DONE {
            None
        } else {
            Some(Self(raw))
        }
    }

    /// The id after this one. After `u32::MAX` comes [`CommandId::FIRST`], which skips the reserved
    /// numbers.
    pub const fn next(self) -> Self {
        if self.0 == u32::MAX {
            Self::FIRST
        } else {
            Self(self.0 + 1)
        }
    }

    /// The number on the wire.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// The value of `free_page_hint_cmd_id`, or of a 4-byte buffer on the hint queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop hinting, keep the hinted pages (virtio 1.2: `VIRTIO_BALLOON_CMD_ID_STOP`).
    Stop,
    /// Hinting is over, the guest may use all hinted pages again (`VIRTIO_BALLOON_CMD_ID_DONE`).
    Done,
    /// From the device: start the round with this id. From the guest: this is the round with this id.
    Start(CommandId),
}

impl Command {
    /// The wire value of [`Command::Stop`].
    pub const STOP: u32 = 0;
    /// The wire value of [`Command::Done`].
    pub const DONE: u32 = 1;

    /// Reads a wire value; every `u32` has a meaning.
    pub const fn from_raw(raw: u32) -> Self {
        match CommandId::new(raw) {
            Some(id) => Self::Start(id),
            None if raw == Self::STOP => Self::Stop,
            None => Self::Done,
        }
    }

    /// The wire value.
    pub const fn to_raw(self) -> u32 {
        match self {
            Self::Stop => Self::STOP,
            Self::Done => Self::DONE,
            Self::Start(id) => id.get(),
        }
    }
}

/// What a queue of the balloon is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueRole {
    /// Pages that the guest gives to the host.
    Inflate,
    /// Pages that the guest takes back.
    Deflate,
    /// Memory statistics.
    Stats,
    /// Free page hints.
    FreePageHint,
    /// Free page reports.
    Reporting,
}

/// How queues get their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueNumbering {
    /// A queue whose feature is missing has no number, and the queues after it move up. Linux and QEMU do this, against
    /// the letter of the specification.
    #[default]
    Dense,
    /// The numbers 0 to 4, whatever the features: what the specification says.
    Fixed,
}

impl QueueNumbering {
    /// The most queues a balloon has.
    pub const MAX_QUEUES: usize = 5;

    /// The role of queue `index` under the negotiated `features`, or `None` if there is no such
    /// queue.
    ///
    /// ```
    /// use spec::balloon::{feature, QueueNumbering, QueueRole};
    /// // Hinting without statistics: Linux gives the hint queue number 2, not 3.
    /// let features = 1 << feature::FREE_PAGE_HINT;
    /// assert_eq!(QueueNumbering::Dense.role(2, features), Some(QueueRole::FreePageHint));
    /// assert_eq!(QueueNumbering::Fixed.role(3, features), Some(QueueRole::FreePageHint));
    /// ```
    pub fn role(self, index: usize, features: u64) -> Option<QueueRole> {
        let has = |bit: u32| features & (1 << bit) != 0;
        let queues = [
            (QueueRole::Inflate, true),
            (QueueRole::Deflate, true),
            (QueueRole::Stats, has(feature::STATS_VQ)),
            (QueueRole::FreePageHint, has(feature::FREE_PAGE_HINT)),
            (QueueRole::Reporting, has(feature::REPORTING)),
        ];
        match self {
            Self::Dense => queues
                .iter()
                .filter(|(_, there)| *there)
                .nth(index)
                .map(|(role, _)| *role),
            Self::Fixed => queues
                .get(index)
                .filter(|(_, there)| *there)
                .map(|(role, _)| *role),
        }
    }

    /// The number of the queue with `role` under the negotiated `features`, or `None` if the features
    /// do not include it.
    pub fn index(self, role: QueueRole, features: u64) -> Option<usize> {
        (0..Self::MAX_QUEUES).find(|&index| self.role(index, features) == Some(role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_after_the_last_skips_the_reserved_numbers() {
        let last = CommandId::new(u32::MAX).unwrap();
        assert_eq!(last.next(), CommandId::FIRST);
        assert_eq!(CommandId::new(Command::STOP), None);
        assert_eq!(CommandId::new(Command::DONE), None);
    }

    #[test]
    fn every_raw_command_survives_a_round_trip() {
        for raw in [0, 1, 2, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            assert_eq!(Command::from_raw(raw).to_raw(), raw);
        }
    }

    #[test]
    fn the_configuration_space_has_the_offsets_of_the_specification() {
        let config = Config {
            num_pages: 1,
            actual: 2,
            free_page_hint_cmd_id: 3,
            poison_val: 4,
        };
        assert_eq!(
            config.to_bytes(),
            [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]
        );
        assert_eq!(Config::from_bytes(&config.to_bytes()), config);
    }

    #[test]
    fn dense_numbering_closes_the_gaps_that_missing_features_leave() {
        let reporting = 1 << feature::REPORTING;
        let stats = 1 << feature::STATS_VQ;
        let hint = 1 << feature::FREE_PAGE_HINT;
        let dense = QueueNumbering::Dense;
        assert_eq!(dense.index(QueueRole::Reporting, reporting), Some(2));
        assert_eq!(
            dense.index(QueueRole::Reporting, reporting | stats),
            Some(3)
        );
        assert_eq!(
            dense.index(QueueRole::Reporting, reporting | stats | hint),
            Some(4)
        );
        assert_eq!(dense.index(QueueRole::Stats, hint), None);
        assert_eq!(dense.role(3, hint), None);
        for index in 0..5 {
            let all = reporting | stats | hint;
            assert_eq!(
                dense.role(index, all),
                QueueNumbering::Fixed.role(index, all)
            );
        }
    }
}
