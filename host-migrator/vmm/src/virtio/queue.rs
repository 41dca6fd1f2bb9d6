// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One split virtqueue as the driver describes it.

use std::sync::atomic::Ordering;

use host_migrator::GuestRam;
use serde::{Deserialize, Serialize};
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// The most entries of a queue (QUEUE_NUM_MAX). With this many Linux can have hints for 4 GiB in flight.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Offset of the index in the used ring: `flags le16, idx le16, ring` (virtio 1.2, section 2.7.8).
const USED_INDEX: u64 = 2;

/// The registers of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Entries.
    pub size: u16,
    /// The driver has set the queue up.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring (driver area).
    pub available: u64,
    /// Guest-physical address of the used ring (device area).
    pub used: u64,
}

/// The queue cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Not a power of two, or too large.
    #[error("size {0} is not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// A part of it is not in guest memory, or not aligned.
    #[error("its {part} at {address:#x} is unaligned or outside guest memory")]
    Address {
        /// Which part.
        part: &'static str,
        /// Its address.
        address: u64,
    },
}

impl Queue {
    /// Checks that a device can run the queue: the size, and that each part is aligned and lies in one
    /// region of guest memory.
    ///
    /// # Errors
    /// [`QueueError`] names the first thing that is wrong.
    pub fn check(&self, ram: &GuestRam) -> Result<(), QueueError> {
        if !self.size.is_power_of_two() || self.size > MAX_QUEUE_SIZE {
            return Err(QueueError::Size(self.size));
        }
        let entries = usize::from(self.size);
        // Sizes and alignments: virtio 1.2 section 2.7. The rings end with the event index.
        for (part, address, bytes, alignment) in [
            ("descriptor table", self.descriptors, 16 * entries, 16),
            ("available ring", self.available, 6 + 2 * entries, 2),
            ("used ring", self.used, 6 + 8 * entries, 4),
        ] {
            let inside = ram.memory().get_slice(GuestAddress(address), bytes).is_ok();
            if !inside || address % alignment != 0 {
                return Err(QueueError::Address { part, address });
            }
        }
        Ok(())
    }

    /// The used index in guest memory. A device that keeps the order and holds no buffer can go on from there.
    ///
    /// # Errors
    /// [`QueueError`] if the used ring is not in guest memory.
    pub fn used_index(&self, ram: &GuestRam) -> Result<u16, QueueError> {
        let index = GuestAddress(self.used.wrapping_add(USED_INDEX));
        let loaded = ram.memory().load(index, Ordering::Acquire);
        loaded.map(u16::from_le).map_err(|_| QueueError::Address {
            part: "used ring",
            address: self.used,
        })
    }

    /// The pages of the used ring, which the device writes.
    pub fn used_pages(&self) -> Option<PageRange> {
        let bytes = 6 + 8 * u64::from(self.size);
        let first = self.used / PAGE_SIZE;
        let end = self.used.checked_add(bytes)?.div_ceil(PAGE_SIZE);
        PageRange::new(first, end - first)
    }
}

/// A queue that the driver has set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The queue's number.
    pub index: usize,
    /// Its layout.
    pub queue: Queue,
    /// The next available index for the back end to take.
    pub base: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_migrator::RamRegion;

    fn ram() -> GuestRam {
        GuestRam::map(vec![RamRegion::new(0x10000, 0x10000).unwrap()]).unwrap()
    }

    const GOOD: Queue = Queue {
        size: 256,
        ready: true,
        descriptors: 0x10000,
        available: 0x12000,
        used: 0x14000,
    };

    #[test]
    fn a_queue_inside_guest_memory_is_good() {
        assert_eq!(GOOD.check(&ram()), Ok(()));
    }

    #[test]
    fn sizes_that_are_not_a_power_of_two_or_too_large_are_refused() {
        for size in [0, 3, 255, 2048, u16::MAX] {
            let queue = Queue { size, ..GOOD };
            assert_eq!(queue.check(&ram()), Err(QueueError::Size(size)));
        }
    }

    #[test]
    fn a_part_that_leaves_guest_memory_by_one_byte_is_refused() {
        let ram = ram();
        for address in [0, 0xfff0, 0x20000 - 16, u64::MAX - 15, 0x10008] {
            let queue = Queue {
                descriptors: address,
                ..GOOD
            };
            assert!(queue.check(&ram).is_err(), "descriptors at {address:#x}");
        }
        let last_used = 0x20000 - (6 + 8 * 256);
        for (used, good) in [(last_used & !3, true), ((last_used & !3) + 4, false)] {
            assert_eq!(Queue { used, ..GOOD }.check(&ram).is_ok(), good);
        }
        let odd = Queue {
            available: 0x12001,
            ..GOOD
        };
        assert!(odd.check(&ram).is_err());
    }
}
