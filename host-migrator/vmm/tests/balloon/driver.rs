// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that uses the balloon through register accesses and hand-made queues in guest memory, so that it can also
//! do what no good driver would do.

use std::sync::Arc;

use host_migrator::GuestRam;
use reference_vmm::mmio::MmioDevice;
use reference_vmm::virtio::VhostUserBalloon;
use spec::balloon::{Config, feature};
use spec_testing::virtqueue::{Virtqueue, WRITE};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::rig::eventually;
use crate::shared::registers::Registers;

/// The features of a stock Linux driver on a device without reporting.
pub const FEATURES: u64 =
    1 << feature::VERSION_1 | 1 << feature::STATS_VQ | 1 << feature::FREE_PAGE_HINT;
/// All queues.
pub const REPORTING_TOO: u64 = FEATURES | 1 << feature::REPORTING;
/// The queues' numbers with and without statistics.
pub const INFLATE: u32 = 0;
pub const DEFLATE: u32 = 1;
pub const STATISTICS: u32 = 2;
pub const HINTS: u32 = 3;
pub const REPORTS: u32 = 4;
pub const SIZE: u16 = 64;

const QUEUES: usize = 5;
/// Room for the content of a buffer.
const MESSAGE_BYTES: u64 = 256;
/// Queue `n` begins at `n + 1` times this. Descriptors, rings and commands take a part each.
const QUEUE_BYTES: u64 = 0x10000;
const PART: u64 = 0x4000;

/// A driver of a balloon.
#[derive(Clone)]
pub struct Driver {
    pub device: Arc<VhostUserBalloon>,
    ram: Arc<GuestRam>,
    features: u64,
    /// How many buffers the driver has made available on each queue.
    available: [u16; QUEUES],
}

impl Driver {
    pub fn new(device: &Arc<VhostUserBalloon>, ram: &Arc<GuestRam>) -> Self {
        Self {
            device: Arc::clone(device),
            ram: Arc::clone(ram),
            features: FEATURES,
            available: [0; QUEUES],
        }
    }

    /// Sets the features that the driver takes.
    pub fn with_features(self, features: u64) -> Self {
        Self { features, ..self }
    }

    /// The driver after its guest was moved to `device`.
    pub fn moved_to(self, device: &Arc<VhostUserBalloon>) -> Self {
        Self {
            device: Arc::clone(device),
            ..self
        }
    }

    /// Sets up the device until DRIVER_OK, as Linux does. Panics where Linux would give up.
    pub fn bring_up(&mut self) {
        self.negotiate();
        for queue in 0..self.queues() {
            assert!(!self.set_queue_up(queue), "ready before");
        }
        self.go();
    }

    /// Sets up the device until FEATURES_OK.
    pub fn negotiate(&mut self) {
        self.available = [0; QUEUES];
        self.accept(self.features);
    }

    /// Sets up the queue. Returns whether it was ready before.
    pub fn set_queue_up(&self, queue: u32) -> bool {
        let base = base(queue);
        let zeros = vec![0; QUEUE_BYTES as usize];
        self.memory()
            .write_slice(&zeros, GuestAddress(base))
            .unwrap();
        self.place_queue(queue, &self::queue(queue))
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
        self.add(HINTS, address, bytes, WRITE);
    }

    /// Sends a command and waits until it is used.
    pub fn send_command(&mut self, command: u32) {
        self.say(HINTS, &command.to_le_bytes());
        self.kick();
        self.wait_until_used();
    }

    /// Kicks the hint queue.
    pub fn kick(&self) {
        self.notify(HINTS);
    }

    /// Puts pages into the balloon and waits until the device has taken them.
    pub fn inflate(&mut self, pfns: impl IntoIterator<Item = u32>) {
        self.tell_pages(INFLATE, pfns);
    }

    /// Takes pages out of the balloon and waits until the device has noted that.
    pub fn deflate(&mut self, pfns: impl IntoIterator<Item = u32>) {
        self.tell_pages(DEFLATE, pfns);
    }

    /// Writes how many pages are in the balloon, as Linux does after a change.
    pub fn set_actual(&self, pages: u32) {
        self.write(reg::VIRTIO_MMIO_CONFIG + Config::ACTUAL as u32, pages);
    }

    /// Gives the device a buffer of statistics, which it keeps until it wants new ones.
    pub fn give_statistics(&mut self, values: &[(u16, u64)]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        self.say(STATISTICS, &bytes);
        self.notify(STATISTICS);
    }

    /// Reports free memory and waits until the device has dropped it.
    pub fn report(&mut self, address: u64, bytes: u32) {
        self.add_report(address, bytes);
        self.wait_for_reports();
    }

    /// Reports free memory.
    pub fn add_report(&mut self, address: u64, bytes: u32) {
        self.add(REPORTS, address, bytes, WRITE);
        self.notify(REPORTS);
    }

    /// Waits until the device has dropped all memory that was reported.
    pub fn wait_for_reports(&self) {
        self.wait_for_queue(REPORTS);
    }

    /// How many buffers were made available on the hint queue.
    pub fn available(&self) -> u16 {
        self.available[HINTS as usize]
    }

    /// How many buffers of the hint queue came back.
    pub fn used(&self) -> u16 {
        self.used_of(HINTS)
    }

    /// How many buffers of `queue` came back.
    pub fn used_of(&self, queue: u32) -> u16 {
        self::queue(queue).used_count(self.memory())
    }

    /// Waits until every buffer of the hint queue has come back.
    pub fn wait_until_used(&self) {
        self.wait_for_queue(HINTS);
    }

    /// Guest-physical address of the hint queue's used ring.
    pub fn used_ring(&self) -> u64 {
        queue(HINTS).used
    }

    /// Waits until every buffer has come back. Checks that each came once, in order, and unwritten.
    pub fn wait_for_queue(&self, queue: u32) {
        let available = self.available[queue as usize];
        let ring = self::queue(queue);
        ring.wait_until_used(self.memory(), available);
        for number in available.saturating_sub(SIZE)..available {
            assert_eq!(
                ring.used_chain(self.memory(), number),
                (u32::from(number % SIZE), 0),
                "buffer {number} of queue {queue}"
            );
        }
    }

    fn queues(&self) -> u32 {
        let reports = self.features & 1 << feature::REPORTING != 0;
        if reports { REPORTS + 1 } else { REPORTS }
    }

    fn tell_pages(&mut self, queue: u32, pfns: impl IntoIterator<Item = u32>) {
        let bytes: Vec<u8> = pfns.into_iter().flat_map(u32::to_le_bytes).collect();
        for message in bytes.chunks(MESSAGE_BYTES as usize) {
            self.say(queue, message);
            self.notify(queue);
            self.wait_for_queue(queue);
        }
    }

    /// Makes a buffer with `message` available to the device.
    fn say(&mut self, queue: u32, message: &[u8]) {
        let slot = u64::from(self.available[queue as usize] % SIZE);
        let at = base(queue) + 3 * PART + slot * MESSAGE_BYTES;
        assert!(message.len() as u64 <= MESSAGE_BYTES);
        self.memory()
            .write_slice(message, GuestAddress(at))
            .unwrap();
        self.add(queue, at, message.len() as u32, 0);
    }

    /// Buffer `n` uses descriptor `n % SIZE`, so at most a ring full of them may be in flight.
    fn add(&mut self, queue: u32, address: u64, bytes: u32, flags: u16) {
        let available = self.available[queue as usize];
        let slot = available % SIZE;
        let in_flight = available.wrapping_sub(self.used_of(queue));
        assert!(in_flight < SIZE, "queue {queue} is full");
        let ring = self::queue(queue);
        ring.describe(self.memory(), slot, (address, bytes, flags, 0));
        ring.offer(self.memory(), available, slot);
        self.available[queue as usize] = available.wrapping_add(1);
    }

    fn memory(&self) -> &impl GuestMemoryBackend {
        self.ram.memory()
    }
}

impl Registers for Driver {
    fn registers(&self) -> &dyn MmioDevice {
        &*self.device
    }
}

fn base(queue: u32) -> u64 {
    (u64::from(queue) + 1) * QUEUE_BYTES
}

/// The place that the driver gives a queue.
fn queue(queue: u32) -> Virtqueue {
    Virtqueue::new(SIZE, base(queue), PART)
}
