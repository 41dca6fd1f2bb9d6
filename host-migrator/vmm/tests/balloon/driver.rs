// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that reaches the balloon by register accesses and lays its queues into guest memory by hand, so
//! that it can also do what a good driver would not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use host_migrator::GuestRam;
use reference_vmm::mmio::MmioDevice;
use reference_vmm::virtio::VhostUserBalloon;
use spec::balloon::{Config, feature};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::rig::eventually;

/// What a stock Linux driver takes.
pub const FEATURES: u64 =
    1 << feature::VERSION_1 | 1 << feature::STATS_VQ | 1 << feature::FREE_PAGE_HINT;
/// The hint queue's number under [`FEATURES`].
pub const HINTS: u32 = 3;
pub const SIZE: u16 = 64;

const WRITE: u16 = 2;
/// Queue `n` lies at `n + 1` times this; descriptors, rings and room for commands a part each.
const QUEUE_BYTES: u64 = 0x10000;
const PART: u64 = 0x4000;

/// A driver of a balloon, and its hint queue.
pub struct Driver {
    pub device: Arc<VhostUserBalloon>,
    ram: Arc<GuestRam>,
    available: u16,
}

impl Driver {
    pub fn new(device: &Arc<VhostUserBalloon>, ram: &Arc<GuestRam>) -> Self {
        Self {
            device: Arc::clone(device),
            ram: Arc::clone(ram),
            available: 0,
        }
    }

    /// A driver whose guest has been moved to `device`.
    pub fn moved_to(self, device: &Arc<VhostUserBalloon>) -> Self {
        Self {
            device: Arc::clone(device),
            ..self
        }
    }

    pub fn read(&self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.device.read(u64::from(offset), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u32, value: u32) {
        self.device.write(u64::from(offset), &value.to_le_bytes());
    }

    /// Up to DRIVER_OK, as Linux does it; panics where Linux would give up.
    pub fn bring_up(&mut self) {
        self.negotiate();
        for queue in 0..=HINTS {
            assert_eq!(self.set_queue_up(queue), 0, "not ready before");
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 15);
        assert_eq!(self.read(reg::VIRTIO_MMIO_STATUS), 15);
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&mut self) {
        self.available = 0;
        for status in [0, 1, 3] {
            self.write(reg::VIRTIO_MMIO_STATUS, status);
        }
        assert_eq!(self.offered() & FEATURES, FEATURES);
        for half in [1, 0] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let value = (FEATURES >> (32 * half)) as u32;
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(self.read(reg::VIRTIO_MMIO_STATUS), 11, "features refused");
    }

    /// Returns whether the queue was ready before.
    pub fn set_queue_up(&self, queue: u32) -> u32 {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        let ready = self.read(reg::VIRTIO_MMIO_QUEUE_READY);
        let base = base(queue);
        let zeros = vec![0; QUEUE_BYTES as usize];
        self.memory()
            .write_slice(&zeros, GuestAddress(base))
            .unwrap();
        for (offset, value) in [
            (reg::VIRTIO_MMIO_QUEUE_NUM, u64::from(SIZE)),
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, base),
            (reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, base >> 32),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + PART),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (base + PART) >> 32),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, base + 2 * PART),
            (reg::VIRTIO_MMIO_QUEUE_USED_HIGH, (base + 2 * PART) >> 32),
            (reg::VIRTIO_MMIO_QUEUE_READY, 1),
        ] {
            self.write(offset, value as u32);
        }
        ready
    }

    pub fn config(&self) -> Config {
        let mut bytes = [0; 16];
        self.device.read(0x100, &mut bytes);
        Config::from_bytes(&bytes)
    }

    /// Waits for a configuration change interrupt and acknowledges it, as an interrupt handler does.
    pub fn wait_for_change(&self) -> Config {
        eventually("a configuration change", || {
            let status = self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
            self.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, status);
            (status & reg::VIRTIO_MMIO_INT_CONFIG != 0).then(|| self.config())
        })
    }

    /// Makes a hint for `bytes` at `address` available without a kick.
    pub fn add_hint(&mut self, address: u64, bytes: u32) {
        self.add(address, bytes, WRITE);
    }

    /// Sends a command and waits until it is used.
    pub fn send_command(&mut self, command: u32) {
        let at = base(HINTS) + 3 * PART + u64::from(self.available % SIZE) * 4;
        self.memory().write_obj(command, GuestAddress(at)).unwrap();
        self.add(at, 4, 0);
        self.kick();
        self.wait_until_used();
    }

    pub fn kick(&self) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, HINTS);
    }

    pub fn available(&self) -> u16 {
        self.available
    }

    pub fn used(&self) -> u16 {
        let at = GuestAddress(self.used_ring() + 2);
        self.memory().load(at, Ordering::Acquire).unwrap()
    }

    /// Waits until every buffer has come back, and checks that each came once, in order, unwritten.
    pub fn wait_until_used(&self) {
        eventually("all buffers used", || {
            (self.used() == self.available).then_some(())
        });
        for number in self.available.saturating_sub(SIZE)..self.available {
            let at = self.used_ring() + 4 + u64::from(number % SIZE) * 8;
            let id: u32 = self.memory().read_obj(GuestAddress(at)).unwrap();
            let written: u32 = self.memory().read_obj(GuestAddress(at + 4)).unwrap();
            assert_eq!(
                (id, written),
                (u32::from(number % SIZE), 0),
                "buffer {number}"
            );
        }
    }

    /// Guest-physical address of the hint queue's used ring.
    pub fn used_ring(&self) -> u64 {
        base(HINTS) + 2 * PART
    }

    fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(1) << 32 | half(0)
    }

    /// Buffer `n` lies in descriptor `n % SIZE`: at most a ring full of them may be on its way.
    fn add(&mut self, address: u64, bytes: u32, flags: u16) {
        let slot = self.available % SIZE;
        let in_flight = self.available.wrapping_sub(self.used());
        assert!(in_flight < SIZE, "the queue is full");
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&address.to_le_bytes());
        descriptor[8..12].copy_from_slice(&bytes.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        let (memory, base) = (self.memory(), base(HINTS));
        let at = base + u64::from(slot) * 16;
        memory.write_slice(&descriptor, GuestAddress(at)).unwrap();
        let at = base + PART + 4 + u64::from(slot) * 2;
        memory.write_obj(slot, GuestAddress(at)).unwrap();
        let next = self.available.wrapping_add(1);
        let at = GuestAddress(base + PART + 2);
        memory.store(next, at, Ordering::Release).unwrap();
        self.available = next;
    }

    fn memory(&self) -> &impl GuestMemoryBackend {
        self.ram.memory()
    }
}

fn base(queue: u32) -> u64 {
    (u64::from(queue) + 1) * QUEUE_BYTES
}
