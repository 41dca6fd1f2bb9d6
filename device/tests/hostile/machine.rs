// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end with hand-made memory and rings, which may be wrong.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use spec_testing::bytes::{longs, words};
use spec_testing::virtqueue::{Descriptor, Virtqueue};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

pub use spec_testing::virtqueue::{INDIRECT, NEXT, WRITE, descriptor_bytes};

use crate::raw::{
    Raw, SET_MEM_TABLE, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE,
    SET_VRING_KICK, SET_VRING_NUM,
};
use crate::rig::guest::{Daemon, MIB};

/// The user address at which the front end claims to have guest memory.
pub const USER: u64 = 0x7000_0000_0000;
/// Bytes of guest memory, from guest-physical 0.
pub const MEMORY: u64 = 16 * MIB;
pub const RING_SIZE: u16 = 64;
/// Bytes of guest memory for one ring, a part each for descriptors, available ring, used ring and buffers.
const RING_BYTES: u64 = 0x10000;
const PART: u64 = 0x4000;

pub const INFLATE: u32 = 0;
pub const STATISTICS: u32 = 2;
pub const HINTS: u32 = 3;

/// A file that can be truncated; honest front ends seal theirs.
pub fn memory_file(bytes: u64) -> File {
    let file = File::from(memfd_create("hostile", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

pub fn copy(file: impl AsFd) -> OwnedFd {
    file.as_fd().try_clone_to_owned().unwrap()
}

/// The payload of a memory table of `regions`: guest address, size, user address, file offset.
pub fn table(regions: &[[u64; 4]]) -> Vec<u8> {
    let mut payload = words(&[regions.len() as u32, 0]);
    regions
        .iter()
        .for_each(|region| payload.extend(longs(region)));
    payload
}

/// The payload of `ADD_MEM_REG` and `REM_MEM_REG`.
pub fn slot(region: [u64; 4]) -> Vec<u8> {
    [longs(&[0]), longs(&region)].concat()
}

/// The payload of `SET_VRING_ADDR` for a ring whose parts have these user addresses.
pub fn addresses(ring: u32, flags: u32, parts: [u64; 3], log: u64) -> Vec<u8> {
    let [descriptors, available, used] = parts;
    [
        words(&[ring, flags]),
        longs(&[descriptors, used, available, log]),
    ]
    .concat()
}

pub struct Machine {
    pub raw: Raw,
    pub file: File,
    memory: GuestMemoryMmap,
    kicks: Vec<OwnedFd>,
    pub calls: Vec<OwnedFd>,
}

impl Machine {
    /// Connects, negotiates, and shares its memory.
    pub fn new(daemon: &Daemon) -> Self {
        let mut raw = Raw::negotiate(daemon);
        let file = memory_file(MEMORY);
        let lent = table(&[[0, MEMORY, USER, 0]]);
        assert_eq!(raw.order(SET_MEM_TABLE, &lent, &[copy(&file)]), Some(0));
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = (GuestAddress(0), MEMORY as usize, Some(mapped));
        Self {
            raw,
            memory: GuestMemoryMmap::from_ranges_with_files([region]).unwrap(),
            file,
            kicks: (0..5).map(|_| event()).collect(),
            calls: (0..5).map(|_| event()).collect(),
        }
    }

    /// The same guest, with the same memory and rings, after its front end was killed and another has connected.
    pub fn reconnected(self, daemon: &Daemon) -> Self {
        let Self {
            raw,
            file,
            memory,
            kicks,
            calls,
        } = self;
        drop(raw);
        let mut raw = Raw::negotiate(daemon);
        let lent = table(&[[0, MEMORY, USER, 0]]);
        assert_eq!(raw.order(SET_MEM_TABLE, &lent, &[copy(&file)]), Some(0));
        Self {
            raw,
            file,
            memory,
            kicks,
            calls,
        }
    }

    /// As [`Machine::new`], with the hint ring running.
    pub fn running(daemon: &Daemon) -> Self {
        let mut machine = Self::new(daemon);
        machine.start(HINTS);
        machine
    }

    /// The user addresses of a ring's descriptors, available and used ring.
    pub fn parts(ring: u32) -> [u64; 3] {
        let ring = queue(ring);
        [ring.descriptors, ring.available, ring.used].map(|part| USER + part)
    }

    /// Where the used ring lies in guest memory.
    pub fn used_ring(ring: u32) -> u64 {
        queue(ring).used
    }

    /// Where the guest may put the ring's buffers.
    pub fn buffers(ring: u32) -> u64 {
        queue(ring).used + PART
    }

    pub fn start(&mut self, ring: u32) {
        self.start_at(ring, &addresses(ring, 0, Self::parts(ring), 0));
    }

    /// As [`Machine::start`], but the device begins at the chain with number `next`.
    pub fn start_from(&mut self, ring: u32, next: u16) {
        let parts = addresses(ring, 0, Self::parts(ring), 0);
        self.start_with(ring, &parts, next.into());
    }

    /// Starts a ring with `parts` as the payload of `SET_VRING_ADDR`.
    pub fn start_at(&mut self, ring: u32, parts: &[u8]) {
        self.start_with(ring, parts, self.available(ring).into());
    }

    /// Starts a ring again. The device goes on where the used ring ends.
    pub fn start_again(&mut self, ring: u32) {
        self.start_from(ring, self.used(ring));
    }

    fn start_with(&mut self, ring: u32, parts: &[u8], base: u32) {
        let kick = copy(&self.kicks[ring as usize]);
        let call = copy(&self.calls[ring as usize]);
        let index = u64::from(ring).to_le_bytes();
        let mut orders = |request: u32, payload: &[u8], fds: &[OwnedFd]| {
            let result = self.raw.order(request, payload, fds);
            assert_eq!(result, Some(0), "request {request}");
        };
        orders(SET_VRING_NUM, &words(&[ring, RING_SIZE.into()]), &[]);
        orders(SET_VRING_BASE, &words(&[ring, base]), &[]);
        orders(SET_VRING_ADDR, parts, &[]);
        orders(SET_VRING_CALL, &index, &[call]);
        orders(SET_VRING_KICK, &index, &[kick]);
        orders(SET_VRING_ENABLE, &words(&[ring, 1]), &[]);
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        let address = GuestAddress(address);
        self.memory.write_slice(bytes, address).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let address = GuestAddress(address);
        self.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }

    /// Writes descriptor `index` of a ring.
    pub fn describe(&self, ring: u32, index: u16, descriptor: Descriptor) {
        queue(ring).describe(&self.memory, index, descriptor);
    }

    /// Offers the chain at `head`.
    pub fn offer(&self, ring: u32, head: u16) {
        queue(ring).offer(&self.memory, self.available(ring), head);
    }

    /// Claims that `index` chains were offered.
    pub fn claim(&self, ring: u32, index: u16) {
        queue(ring).set_available(&self.memory, index);
    }

    pub fn kick(&self, ring: u32) {
        rustix::io::write(&self.kicks[ring as usize], &1u64.to_ne_bytes()).unwrap();
    }

    pub fn available(&self, ring: u32) -> u16 {
        queue(ring).available_count(&self.memory)
    }

    pub fn used(&self, ring: u32) -> u16 {
        queue(ring).used_count(&self.memory)
    }

    /// Offers one descriptor, and waits until it is used.
    pub fn send(&self, ring: u32, descriptor: Descriptor) {
        let head = self.available(ring) % RING_SIZE;
        self.describe(ring, head, descriptor);
        self.offer(ring, head);
        self.kick(ring);
        self.wait_until_used(ring);
    }

    pub fn wait_until_used(&self, ring: u32) {
        queue(ring).wait_until_used(&self.memory, self.available(ring));
    }

    /// Sends a request that the device answers after all that came before.
    pub fn is_answered(&mut self) {
        assert_eq!(self.raw.ask(crate::raw::GET_QUEUE_NUM, &[]).len(), 8);
    }
}

/// Where a ring lies in guest memory.
fn queue(ring: u32) -> Virtqueue {
    Virtqueue::new(RING_SIZE, u64::from(ring) * RING_BYTES, PART)
}
