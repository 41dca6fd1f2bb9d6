// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's side of a split virtqueue (virtio 1.2, section 2.7) with one descriptor for each buffer.

use core::sync::atomic::{Ordering, fence};

use crate::dma::DmaRegion;

/// The most descriptors a [`Queue`] has.
pub const MAX_SIZE: u16 = 1024;

/// Descriptor flag: the device writes the buffer (here: may take its content away).
const DESCRIPTOR_WRITE: u16 = 2;
/// Available ring flag: the driver wants no interrupt.
const NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device wants no notification.
const NO_NOTIFY: u16 = 1;

/// Why a buffer cannot be queued, or why the queue cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// The device has every descriptor. [`Queue::reap`] gets back those that it has used.
    Full,
    /// The device returned a buffer that it did not have.
    Broken,
}

/// Where the parts of a queue are in its memory: descriptors, available ring, used ring, and a word for each descriptor
/// for [`Queue::push_word`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    size: u16,
}

impl QueueLayout {
    /// The layout of the largest queue with at most `max` descriptors, which the device allows, and at most `wanted`. `None`
    /// if the device has no such queue.
    pub const fn new(max: u32, wanted: u16) -> Option<Self> {
        let mut size = if wanted < MAX_SIZE { wanted } else { MAX_SIZE };
        if max < size as u32 {
            size = max as u16;
        }
        if size == 0 {
            return None;
        }
        Some(Self {
            size: 1 << size.ilog2(),
        })
    }

    /// Descriptors; a power of two.
    pub const fn size(self) -> u16 {
        self.size
    }

    /// Offset of the available ring.
    pub const fn available(self) -> usize {
        16 * self.size as usize
    }

    /// Offset of the used ring.
    pub const fn used(self) -> usize {
        (self.available() + 6 + 2 * self.size as usize).next_multiple_of(4)
    }

    /// Offset of the words.
    const fn words(self) -> usize {
        (self.used() + 6 + 8 * self.size as usize).next_multiple_of(4)
    }

    /// Bytes of the whole, a multiple of 16.
    pub const fn bytes(self) -> usize {
        (self.words() + 4 * self.size as usize).next_multiple_of(16)
    }
}

/// A queue shared with the device.
#[derive(Debug)]
pub struct Queue {
    memory: DmaRegion,
    layout: QueueLayout,
    /// A stack of free descriptors; the first `free_count` entries are valid.
    free: [u16; MAX_SIZE as usize],
    free_count: u16,
    /// One bit for each descriptor: whether the device has it.
    in_flight: [u64; MAX_SIZE as usize / 64],
    /// How many buffers were made available since the start. The index in the ring is this modulo its size.
    available: u16,
    /// How many used buffers were taken back since the start.
    used: u16,
    broken: bool,
}

impl Queue {
    /// A queue laid out as `layout` in `memory`, which is zero; `None` if that is too short.
    pub fn new(memory: DmaRegion, layout: QueueLayout) -> Option<Self> {
        if memory.bytes() < layout.bytes() {
            return None;
        }
        memory
            .u16_at(layout.available())
            .store(NO_INTERRUPT.to_le(), Ordering::Relaxed);
        Some(Self {
            memory,
            layout,
            free: core::array::from_fn(|index| index as u16),
            free_count: layout.size,
            in_flight: [0; MAX_SIZE as usize / 64],
            available: 0,
            used: 0,
            broken: false,
        })
    }

    /// Makes the `bytes` at `address` (the device's address) available as a buffer that the device may write.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn push_writable(&mut self, address: u64, bytes: u32) -> Result<(), QueueError> {
        let descriptor = self.take_descriptor()?;
        self.publish(descriptor, address, bytes, DESCRIPTOR_WRITE);
        Ok(())
    }

    /// Makes a buffer of 4 bytes with `word` available for the device to read. The bytes do not change until the device has
    /// used them.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn push_word(&mut self, word: u32) -> Result<(), QueueError> {
        let descriptor = self.take_descriptor()?;
        let offset = self.layout.words() + 4 * descriptor as usize;
        self.memory
            .u32_at(offset)
            .store(word.to_le(), Ordering::Relaxed);
        self.publish(descriptor, self.memory.address() + offset as u64, 4, 0);
        Ok(())
    }

    /// Takes back the buffers that the device has used.
    ///
    /// # Errors
    /// [`QueueError::Broken`] if the device returned anything else. The queue stays broken.
    pub fn reap(&mut self) -> Result<(), QueueError> {
        let ring = self.layout.used();
        let end = u16::from_le(self.memory.u16_at(ring + 2).load(Ordering::Acquire));
        while self.used != end && !self.broken {
            let slot = usize::from(self.used % self.layout.size);
            let field = self.memory.u32_at(ring + 4 + 8 * slot);
            let descriptor = u32::from_le(field.load(Ordering::Relaxed));
            self.give_back(descriptor);
            self.used = self.used.wrapping_add(1);
        }
        if self.broken {
            return Err(QueueError::Broken);
        }
        Ok(())
    }

    /// Whether the device wants to be notified of the buffers pushed so far.
    pub fn wants_notification(&self) -> bool {
        // The device sets the flag and then reads the ring; we publish and then read the flag. Without a full fence both
        // could see the old value.
        fence(Ordering::SeqCst);
        let flags = self.memory.u16_at(self.layout.used());
        u16::from_le(flags.load(Ordering::Relaxed)) & NO_NOTIFY == 0
    }

    fn take_descriptor(&mut self) -> Result<u16, QueueError> {
        if self.free_count == 0 {
            self.reap()?;
        }
        if self.broken {
            return Err(QueueError::Broken);
        }
        self.free_count = self.free_count.checked_sub(1).ok_or(QueueError::Full)?;
        let descriptor = self.free[self.free_count as usize];
        self.in_flight[descriptor as usize / 64] |= 1 << (descriptor % 64);
        Ok(descriptor)
    }

    fn give_back(&mut self, descriptor: u32) {
        let bit = 1 << (descriptor % 64);
        match self.in_flight.get_mut(descriptor as usize / 64) {
            Some(word) if *word & bit != 0 => *word &= !bit,
            _ => {
                self.broken = true;
                return;
            }
        }
        self.free[self.free_count as usize] = descriptor as u16;
        self.free_count += 1;
    }

    fn publish(&mut self, descriptor: u16, address: u64, bytes: u32, flags: u16) {
        let at = 16 * descriptor as usize;
        let memory = &self.memory;
        memory.u64_at(at).store(address.to_le(), Ordering::Relaxed);
        memory
            .u32_at(at + 8)
            .store(bytes.to_le(), Ordering::Relaxed);
        memory
            .u16_at(at + 12)
            .store(flags.to_le(), Ordering::Relaxed);

        let ring = self.layout.available();
        let slot = usize::from(self.available % self.layout.size);
        memory
            .u16_at(ring + 4 + 2 * slot)
            .store(descriptor.to_le(), Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        // The device may read descriptor and slot as soon as it sees the index.
        memory
            .u16_at(ring + 2)
            .store(self.available.to_le(), Ordering::Release);
    }
}
