// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hand-made split virtqueue in guest memory, from the driver's side. Tests can also make one that no good driver
//! would make.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::eventually;

/// The chain goes on.
pub const NEXT: u16 = 1;
/// The device writes to the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// One descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

/// A descriptor's bytes in memory.
pub fn descriptor_bytes((address, length, flags, next): Descriptor) -> [u8; 16] {
    let rest = u64::from(length) | u64::from(flags) << 32 | u64::from(next) << 48;
    (u128::from(rest) << 64 | u128::from(address)).to_le_bytes()
}

/// Where a queue lies in guest memory. The caller keeps count of the chains that were made available.
#[derive(Clone, Copy, Debug)]
pub struct Virtqueue {
    /// The number of descriptors, and of entries of each ring.
    pub size: u16,
    /// The descriptors' guest-physical address.
    pub descriptors: u64,
    /// The available ring's address.
    pub available: u64,
    /// The used ring's address.
    pub used: u64,
}

/// Every method panics if guest memory has no room for the queue.
impl Virtqueue {
    /// A queue of `size` entries. Its parts begin `part` bytes apart, the first one at `base`.
    pub const fn new(size: u16, base: u64, part: u64) -> Self {
        Self {
            size,
            descriptors: base,
            available: base + part,
            used: base + 2 * part,
        }
    }

    /// Writes descriptor number `index`.
    pub fn describe(self, memory: &impl GuestMemoryBackend, index: u16, descriptor: Descriptor) {
        let at = GuestAddress(self.descriptors + u64::from(index) * 16);
        memory
            .write_slice(&descriptor_bytes(descriptor), at)
            .expect("guest memory");
    }

    /// Makes the chain at `head` available, as number `before` (from 0).
    pub fn offer(self, memory: &impl GuestMemoryBackend, before: u16, head: u16) {
        let entry = self.available + 4 + u64::from(before % self.size) * 2;
        memory
            .write_obj(head, GuestAddress(entry))
            .expect("guest memory");
        self.set_available(memory, before.wrapping_add(1));
    }

    /// Claims that `count` chains were made available.
    pub fn set_available(self, memory: &impl GuestMemoryBackend, count: u16) {
        store(memory, self.available + 2, count);
    }

    /// How many chains were made available.
    pub fn available_count(self, memory: &impl GuestMemoryBackend) -> u16 {
        load(memory, self.available + 2)
    }

    /// How many chains the device has given back.
    pub fn used_count(self, memory: &impl GuestMemoryBackend) -> u16 {
        load(memory, self.used + 2)
    }

    /// Empties the used ring, as a driver does that sets up the queue anew.
    pub fn clear_used(self, memory: &impl GuestMemoryBackend) {
        store(memory, self.used + 2, 0);
    }

    /// Asks for no interrupts.
    pub fn ask_for_no_interrupts(self, memory: &impl GuestMemoryBackend) {
        store(memory, self.available, 1);
    }

    /// The chain that was given back as number `before` (from 0): its head, and the number of bytes written to it.
    pub fn used_chain(self, memory: &impl GuestMemoryBackend, before: u16) -> (u32, u32) {
        let at = self.used + 4 + u64::from(before % self.size) * 8;
        let word = |at| memory.read_obj(GuestAddress(at)).expect("guest memory");
        (word(at), word(at + 4))
    }

    /// Waits until the device has given back `count` chains.
    pub fn wait_until_used(self, memory: &impl GuestMemoryBackend, count: u16) {
        eventually("all chains used", || {
            (self.used_count(memory) == count).then_some(())
        });
    }
}

/// An index is written after the entries that it counts, and read before them.
fn store(memory: &impl GuestMemoryBackend, at: u64, index: u16) {
    memory
        .store(index, GuestAddress(at), Ordering::SeqCst)
        .expect("guest memory");
}

fn load(memory: &impl GuestMemoryBackend, at: u64) -> u16 {
    memory
        .load(GuestAddress(at), Ordering::SeqCst)
        .expect("guest memory")
}
