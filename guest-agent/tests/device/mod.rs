// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A balloon device for the driver under test: registers, and rust-vmm's device side of the queues.

use std::cell::{Ref, RefCell, RefMut};
use std::rc::Rc;

use lacuna_balloon_driver::mmio::{INTERRUPT_CONFIG, MAGIC, VERSION};
use lacuna_balloon_driver::{Balloon, DmaRegion, Register, Registers};
use spec::balloon::{Config, feature};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::rings;

/// The device's address of the rings.
pub const RINGS_GPA: u64 = 0x10_0000;
/// Queues of the device.
const QUEUES: usize = 5;

/// A buffer that the device took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// A readable buffer of four bytes: a command.
    Word(u32),
    /// A writable buffer: a hint.
    Hint {
        /// Its address.
        address: u64,
        /// Its length.
        bytes: u32,
    },
}

/// The device's registers and queues. The device does nothing by itself: the test decides when it serves its hint queue.
#[derive(Debug)]
pub struct Device {
    /// What [`Register::Magic`] reads.
    pub magic: u32,
    /// What [`Register::DeviceId`] reads.
    pub id: u32,
    /// The features offered.
    pub offered: u64,
    /// The most descriptors of a queue.
    pub queue_max: u16,
    /// The features accepted.
    pub taken: u64,
    /// The driver's status bits.
    pub status: u32,
    /// The configuration space.
    pub config: Config,
    /// The queues.
    pub queues: Vec<Queue>,
    /// The numbers of the queues that the driver notified.
    pub notified: Vec<u32>,
    features_half: u32,
    selected: usize,
    interrupt: u32,
    memory: GuestMemoryMmap,
}

/// A handle of a [`Device`]. The test and the driver have one each.
#[derive(Clone, Debug)]
pub struct Handle(Rc<RefCell<Device>>);

impl Handle {
    /// A device that offers hinting, poison, statistics and reporting, and the memory for its rings.
    pub fn new() -> (Self, DmaRegion) {
        let bytes = Balloon::<Self>::MEMORY_BYTES.next_multiple_of(4096);
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(RINGS_GPA), bytes)]).expect("a few pages");
        let region = rings::region(&memory, RINGS_GPA, bytes);
        let bits = [
            feature::VERSION_1,
            feature::FREE_PAGE_HINT,
            feature::PAGE_POISON,
            feature::STATS_VQ,
            feature::REPORTING,
        ];
        let device = Device {
            magic: MAGIC,
            id: 5,
            offered: bits.into_iter().fold(0, |all, bit| all | 1 << bit),
            queue_max: 1024,
            taken: 0,
            status: 0,
            config: Config::default(),
            queues: (0..QUEUES)
                .map(|_| Queue::new(1024).expect("a power of two"))
                .collect(),
            notified: Vec::new(),
            features_half: 0,
            selected: 0,
            interrupt: 0,
            memory,
        };
        (Self(Rc::new(RefCell::new(device))), region)
    }

    /// A driver on this device whose hint queue has `queue_max` descriptors.
    pub fn with_driver(queue_max: u16) -> (Self, Balloon<Self>) {
        let (device, rings) = Self::new();
        device.change().queue_max = queue_max;
        let driver = Balloon::new(device.clone(), rings, None).expect("a good device");
        (device, driver)
    }

    /// The device's state.
    pub fn look(&self) -> Ref<'_, Device> {
        self.0.borrow()
    }

    /// The device's state, mutable.
    pub fn change(&self) -> RefMut<'_, Device> {
        self.0.borrow_mut()
    }

    /// Sets the command id and announces the change.
    pub fn command(&self, raw: u32) {
        let mut device = self.change();
        device.config.free_page_hint_cmd_id = raw;
        device.interrupt |= INTERRUPT_CONFIG;
    }

    /// Takes at most `limit` buffers from queue `number` and uses them.
    pub fn serve(&self, number: usize, limit: usize) -> Vec<Buffer> {
        let device = &mut *self.change();
        let mut buffers = Vec::new();
        for _ in 0..limit {
            let queue = &mut device.queues[number];
            let Some(chain) = queue.pop_descriptor_chain(&device.memory) else {
                break;
            };
            let head = chain.head_index();
            let descriptors: Vec<_> = chain.collect();
            assert_eq!(descriptors.len(), 1, "one descriptor for each buffer");
            let (address, bytes) = (descriptors[0].addr(), descriptors[0].len());
            buffers.push(if descriptors[0].is_write_only() {
                let address = address.0;
                Buffer::Hint { address, bytes }
            } else {
                assert_eq!(bytes, 4);
                Buffer::Word(device.memory.read_obj(address).expect("in the rings"))
            });
            queue
                .add_used(&device.memory, head, 0)
                .expect("a good ring");
        }
        buffers
    }

    /// Sets on queue `number` whether the device wants to be notified.
    pub fn want_notifications(&self, number: usize, want: bool) {
        let device = &mut *self.change();
        let queue = &mut device.queues[number];
        let done = if want {
            queue.enable_notification(&device.memory).map(|_| ())
        } else {
            queue.disable_notification(&device.memory)
        };
        done.expect("a good ring");
    }

    /// Returns `descriptor` on queue `number`, even if the device does not have it.
    pub fn return_descriptor(&self, number: usize, descriptor: u32) {
        let device = &mut *self.change();
        let queue = &mut device.queues[number];
        let index = queue.next_used();
        let slot = u64::from(index % queue.size());
        let ring = GuestAddress(queue.used_ring());
        let write = [
            device
                .memory
                .write_obj(descriptor, ring.unchecked_add(4 + 8 * slot)),
            device
                .memory
                .write_obj(index.wrapping_add(1), ring.unchecked_add(2)),
        ];
        assert!(write.iter().all(Result::is_ok));
        queue.set_next_used(index.wrapping_add(1));
    }
}

impl Registers for Handle {
    fn read(&self, register: Register) -> u32 {
        let device = self.look();
        match register {
            Register::Magic => device.magic,
            Register::Version => VERSION,
            Register::DeviceId => device.id,
            Register::DeviceFeatures => (device.offered >> (32 * device.features_half)) as u32,
            Register::QueueSizeMax if device.selected < QUEUES => device.queue_max.into(),
            Register::QueueSizeMax => 0,
            Register::InterruptStatus => device.interrupt,
            Register::Status => device.status,
            other => panic!("the driver read {other:?}"),
        }
    }

    fn write(&mut self, register: Register, value: u32) {
        let mut device = self.change();
        let selected = device.selected;
        let low_half = Some(value);
        match register {
            Register::DeviceFeaturesSelect | Register::DriverFeaturesSelect => {
                device.features_half = value;
            }
            Register::DriverFeatures => {
                device.taken |= u64::from(value) << (32 * device.features_half);
            }
            Register::Status => device.status = value,
            Register::InterruptAck => device.interrupt &= !value,
            Register::QueueNotify => device.notified.push(value),
            Register::QueueSelect => device.selected = value as usize,
            Register::QueueSize => device.queues[selected].set_size(value as u16),
            Register::QueueReady => device.queues[selected].set_ready(value == 1),
            Register::QueueDescriptorsLow => {
                device.queues[selected].set_desc_table_address(low_half, None);
            }
            Register::QueueDescriptorsHigh => {
                device.queues[selected].set_desc_table_address(None, Some(value));
            }
            Register::QueueAvailableLow => {
                device.queues[selected].set_avail_ring_address(low_half, None);
            }
            Register::QueueAvailableHigh => {
                device.queues[selected].set_avail_ring_address(None, Some(value));
            }
            Register::QueueUsedLow => device.queues[selected].set_used_ring_address(low_half, None),
            Register::QueueUsedHigh => {
                device.queues[selected].set_used_ring_address(None, Some(value));
            }
            other => panic!("the driver wrote {other:?}"),
        }
    }

    fn read_config(&self, offset: usize) -> u32 {
        assert_eq!(offset, Config::CMD_ID);
        self.look().config.free_page_hint_cmd_id
    }

    fn write_config(&mut self, offset: usize, value: u32) {
        assert_eq!(offset, Config::POISON);
        self.change().config.poison_val = value;
    }
}
