// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hand-made virtqueue in guest memory, from the driver's side.

use spec_testing::virtqueue::{NEXT, Virtqueue, WRITE};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::Memory;

pub const QUEUE_SIZE: u16 = 1024;
/// Bytes from one part of the queue to the next. Each part is smaller.
const PART: u64 = 0x8000;
/// Bytes of guest memory for one queue, with room for commands.
pub const QUEUE_BYTES: u64 = 4 * PART;

/// One descriptor of a chain.
#[derive(Clone, Copy, Debug)]
pub enum Buffer {
    /// The device reads it: a command, at any address.
    Out(u64, u32),
    /// The device may write it: a hint.
    In(u64, u32),
}

/// A queue of the guest.
pub struct Queue {
    memory: Memory,
    index: usize,
    ring: Virtqueue,
    next_descriptor: u16,
    available: u16,
    kick: EventFd,
    pub call: EventFd,
}

impl Queue {
    /// Queue number `index` at guest-physical `base`.
    pub fn new(memory: Memory, index: usize, base: u64) -> Self {
        Self {
            memory,
            index,
            ring: Virtqueue::new(QUEUE_SIZE, base, PART),
            next_descriptor: 0,
            available: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    /// Has the device run the queue. `next` is the number of the first chain that it takes.
    pub fn start(&self, front_end: &mut Frontend, next: u16) {
        self.start_enabled(front_end, next);
        front_end.set_vring_enable(self.index, true).unwrap();
    }

    /// As [`Queue::start`], for a front end whose rings are always enabled.
    pub fn start_enabled(&self, front_end: &mut Frontend, next: u16) {
        let host = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        front_end.set_vring_num(self.index, QUEUE_SIZE).unwrap();
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host(self.ring.descriptors),
            used_ring_addr: host(self.ring.used),
            avail_ring_addr: host(self.ring.available),
            log_addr: None,
        };
        front_end.set_vring_addr(self.index, &addresses).unwrap();
        front_end.set_vring_base(self.index, next).unwrap();
        front_end.set_vring_call(self.index, &self.call).unwrap();
        front_end.set_vring_kick(self.index, &self.kick).unwrap();
    }

    /// Uses a new kick from the next start on, as a front end does that makes its queues anew.
    pub fn renew_kick(&mut self) {
        self.kick = EventFd::new(EFD_NONBLOCK).unwrap();
    }

    /// Stops the queue. Returns the number of the next chain that the device would take.
    pub fn stop(&self, front_end: &Frontend) -> u16 {
        front_end.get_vring_base(self.index).unwrap() as u16
    }

    /// Writes a command's bytes to a place without hints and returns its buffer.
    pub fn command(&self, bytes: &[u8]) -> Buffer {
        let address = self.ring.used + PART + u64::from(self.available) * 16;
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
        Buffer::Out(address, bytes.len() as u32)
    }

    /// Makes one chain available without a kick. Descriptors are used in turn, so at most a ring full of them may be in
    /// flight.
    pub fn add(&mut self, buffers: &[Buffer]) {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let (address, length, write) = match *buffer {
                Buffer::Out(address, length) => (address, length, 0),
                Buffer::In(address, length) => (address, length, WRITE),
            };
            let more = if position + 1 < buffers.len() {
                NEXT
            } else {
                0
            };
            let next = (self.next_descriptor + 1) % QUEUE_SIZE;
            self.write_descriptor(self.next_descriptor, address, length, write | more, next);
            self.next_descriptor = next;
        }
        self.add_head(head);
    }

    pub fn write_descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let descriptor = (address, length, flags, next);
        self.ring.describe(&*self.memory, index, descriptor);
    }

    /// Makes the chain at `head` available without a kick.
    pub fn add_head(&mut self, head: u16) {
        self.ring.offer(&*self.memory, self.available, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Claims that `index` chains have been made available.
    pub fn set_available(&self, index: u16) {
        self.ring.set_available(&*self.memory, index);
    }

    /// Empties the used ring, as a driver does that sets up the queue anew.
    pub fn clear_used(&self) {
        self.ring.clear_used(&*self.memory);
    }

    /// Asks for no interrupts.
    pub fn ask_for_no_interrupts(&self) {
        self.ring.ask_for_no_interrupts(&*self.memory);
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Makes one chain available, kicks, and waits until the device has used everything.
    pub fn send(&mut self, buffers: &[Buffer]) {
        self.add(buffers);
        self.kick();
        self.wait_until_used();
    }

    pub fn used(&self) -> u16 {
        self.ring.used_count(&*self.memory)
    }

    /// The page in which the used ring begins, for the dirty log.
    pub fn used_page(&self) -> u64 {
        self.ring.used / 4096
    }

    pub fn available(&self) -> u16 {
        self.available
    }

    /// Waits until the device has given back everything. Checks that each used length is 0.
    pub fn wait_until_used(&self) {
        self.ring.wait_until_used(&*self.memory, self.available);
        for slot in 0..self.used().min(QUEUE_SIZE) {
            let (_, written) = self.ring.used_chain(&*self.memory, slot);
            assert_eq!(written, 0, "used length of slot {slot}");
        }
    }
}

/// The memory table for the front end's message.
pub fn memory_table(memory: &Memory) -> Vec<VhostUserMemoryRegionInfo> {
    memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
        .collect()
}
