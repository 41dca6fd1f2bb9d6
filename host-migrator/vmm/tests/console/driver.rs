// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that uses the console through register accesses. It does what Linux's `virtio_console` does, or what no
//! good driver would do.

use std::sync::Arc;

use reference_vmm::memory::MachineMemory;
use reference_vmm::mmio::MmioDevice;
use reference_vmm::virtio::console::VirtioConsole;
use reference_vmm::virtio::console::control::PORT_NAME;
use spec_testing::virtqueue::Virtqueue;
use vm_memory::{Bytes, GuestAddress};

use crate::rig::eventually;
use crate::shared::registers::Registers;

pub use spec_testing::virtqueue::{Descriptor, INDIRECT, NEXT, WRITE, descriptor_bytes};

pub const RECEIVE: u32 = 0;
pub const TRANSMIT: u32 = 1;
pub const CONTROL_RECEIVE: u32 = 2;
pub const CONTROL_TRANSMIT: u32 = 3;
const QUEUES: usize = 4;
pub const SIZE: u16 = 8;

/// VERSION_1, indirect descriptors, and ports with names.
const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 1;

/// Control events.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const NAME: u16 = 7;

/// Queue `n` begins at `n + 1` times this. Descriptors, rings and buffers take a part each.
const QUEUE_BYTES: u64 = 0x40000;
const PART: u64 = 0x1000;
/// The size of a buffer if the test does not give one.
pub const BUFFER: u64 = 0x1000;

/// A driver of a console.
#[derive(Clone)]
pub struct Driver {
    pub device: Arc<VirtioConsole>,
    pub memory: Arc<MachineMemory>,
    available: [u16; QUEUES],
    /// How many buffers the driver has taken back from each queue.
    seen: [u16; QUEUES],
}

impl Driver {
    pub fn new(device: &Arc<VirtioConsole>, memory: &Arc<MachineMemory>) -> Self {
        Self {
            device: Arc::clone(device),
            memory: Arc::clone(memory),
            available: [0; QUEUES],
            seen: [0; QUEUES],
        }
    }

    /// The driver after its guest was moved to `device`.
    pub fn moved_to(self, device: &Arc<VirtioConsole>) -> Self {
        Self {
            device: Arc::clone(device),
            ..self
        }
    }

    /// Sets up the device until DRIVER_OK, with buffers for its messages.
    pub fn bring_up(&mut self) {
        self.bring_up_without_buffers();
        for _ in 0..SIZE {
            self.offer(CONTROL_RECEIVE, BUFFER as u32);
        }
    }

    /// Sets up the device until DRIVER_OK, without buffers.
    pub fn bring_up_without_buffers(&mut self) {
        (self.available, self.seen) = ([0; QUEUES], [0; QUEUES]);
        self.accept(FEATURES);
        for queue in 0..QUEUES as u32 {
            self.set_queue_up(queue, base(queue));
        }
        self.go();
    }

    pub fn set_queue_up(&self, queue: u32, base: u64) {
        let zeros = vec![0; QUEUE_BYTES as usize];
        self.put(base, &zeros);
        self.place_queue(queue, &Virtqueue::new(SIZE, base, PART));
    }

    /// Reports that the driver is ready, and sets up the device's port.
    pub fn add_port(&mut self) {
        self.say_ready();
        assert_eq!(self.hear(), (PORT_ADD, 1, Vec::new()));
        self.tell(0, PORT_READY, 1);
        assert_eq!(self.hear(), (NAME, 1, PORT_NAME.as_bytes().to_vec()));
    }

    /// Reports that the driver is ready.
    pub fn say_ready(&mut self) {
        self.tell(u32::MAX, DEVICE_READY, 1);
    }

    /// Opens or closes the guest's end.
    pub fn open_port(&mut self, open: bool) {
        self.tell(0, PORT_OPEN, open.into());
    }

    /// Waits for the message that the host's end is open, or closed.
    pub fn wait_for_host(&mut self, open: bool) {
        assert_eq!(self.hear(), (PORT_OPEN, open.into(), Vec::new()));
    }

    /// Sends `bytes` to the host, without waiting.
    pub fn say(&mut self, bytes: &[u8]) {
        let slot = self.available[TRANSMIT as usize] % SIZE;
        let at = buffer(TRANSMIT, slot);
        self.put(at, bytes);
        self.add(TRANSMIT, &[(at, bytes.len() as u32, 0, 0)]);
    }

    /// Offers a buffer of `bytes` bytes.
    pub fn offer(&mut self, queue: u32, bytes: u32) {
        let slot = self.available[queue as usize] % SIZE;
        self.add(queue, &[(buffer(queue, slot), bytes, WRITE, 0)]);
    }

    /// The next bytes from the host. The driver must have offered buffers for them.
    pub fn listen(&mut self) -> Vec<u8> {
        self.take_back(RECEIVE)
    }

    /// Waits until the device has given back all buffers of `queue`.
    pub fn wait_for(&self, queue: u32) {
        let available = self.available[queue as usize];
        self::queue(queue).wait_until_used(self.memory.ram().memory(), available);
    }

    /// How many buffers of `queue` the device has given back.
    pub fn used(&self, queue: u32) -> u16 {
        self::queue(queue).used_count(self.memory.ram().memory())
    }

    /// Makes the chain `descriptors` available, and kicks. The first descriptor is in this buffer's place, the others
    /// at the end of the table.
    pub fn add(&mut self, queue: u32, descriptors: &[Descriptor]) {
        let available = self.available[queue as usize];
        let slot = available % SIZE;
        for (at, descriptor) in descriptors.iter().enumerate() {
            let index = if at == 0 { slot } else { SIZE - at as u16 };
            let memory = self.memory.ram().memory();
            self::queue(queue).describe(memory, index, *descriptor);
        }
        self.make_available(queue, slot);
    }

    /// Puts the chain that begins at `head` into the ring, whatever it contains, and kicks.
    pub fn make_available(&mut self, queue: u32, head: u16) {
        let available = &mut self.available[queue as usize];
        self::queue(queue).offer(self.memory.ram().memory(), *available, head);
        *available = available.wrapping_add(1);
        self.notify(queue);
    }

    pub fn set_available_index(&mut self, queue: u32, index: u16) {
        self::queue(queue).set_available(self.memory.ram().memory(), index);
        self.available[queue as usize] = index;
        self.notify(queue);
    }

    pub fn put_descriptor(&self, at: u64, descriptor: &Descriptor) {
        self.put(at, &descriptor_bytes(*descriptor));
    }

    /// Writes guest memory as a vCPU does: the log of the VMM's own writes does not see it.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let ram = self.memory.ram().memory();
        ram.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let ram = self.memory.ram().memory();
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn tell(&mut self, port: u32, event: u16, value: u16) {
        let slot = self.available[CONTROL_TRANSMIT as usize] % SIZE;
        let at = buffer(CONTROL_TRANSMIT, slot);
        let message = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ];
        self.put(at, &message.concat());
        self.add(CONTROL_TRANSMIT, &[(at, 8, 0, 0)]);
        self.wait_for(CONTROL_TRANSMIT);
    }

    /// The next message: its event, its value and what follows. Its buffer is offered again.
    fn hear(&mut self) -> (u16, u16, Vec<u8>) {
        let message = self.take_back(CONTROL_RECEIVE);
        self.offer(CONTROL_RECEIVE, BUFFER as u32);
        let half = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
        assert_eq!(message[..4], [0; 4], "the number of the port");
        (half(4), half(6), message[8..].to_vec())
    }

    /// Waits for the next buffer that comes back, and returns its content.
    fn take_back(&mut self, queue: u32) -> Vec<u8> {
        let seen = self.seen[queue as usize];
        eventually("a buffer", || (self.used(queue) != seen).then_some(()));
        let memory = self.memory.ram().memory();
        let (head, length) = self::queue(queue).used_chain(memory, seen);
        assert_eq!(head, u32::from(seen % SIZE), "buffers come back in order");
        self.seen[queue as usize] = seen.wrapping_add(1);
        self.get(buffer(queue, seen % SIZE), length as usize)
    }
}

impl Registers for Driver {
    fn registers(&self) -> &dyn MmioDevice {
        &*self.device
    }
}

/// The place that the driver gives a queue.
fn queue(queue: u32) -> Virtqueue {
    Virtqueue::new(SIZE, base(queue), PART)
}

/// Where a queue lies.
pub fn base(queue: u32) -> u64 {
    (u64::from(queue) + 1) * QUEUE_BYTES
}

/// Where a buffer lies. After a queue's rings there is room for as many large buffers as it has entries.
pub fn buffer(queue: u32, slot: u16) -> u64 {
    base(queue) + 4 * PART + u64::from(slot) * 0x4000
}
