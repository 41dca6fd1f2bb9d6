// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The register file of virtio-mmio version 2 (virtio 1.2, section 4.2.2): the guest's reads and writes, and their
//! effects. There is no I/O here: the device carries out the effects.

use serde::{Deserialize, Serialize};
use spec::balloon::{CONFIG_SIZE, QueueNumbering, feature};
use virtio_bindings::virtio_config as status;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring;

use super::queue::{MAX_QUEUE_SIZE, Queue};

/// How many queues the transport has registers for: as many as the balloon has, which has the most.
pub const MAX_QUEUES: usize = QueueNumbering::MAX_QUEUES;

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// "LACU": the vendor chooses this number.
const VENDOR: u32 = u32::from_le_bytes(*b"LACU");
/// Status bits that belong to the driver.
const DRIVER_STATUS: u32 = status::VIRTIO_CONFIG_S_ACKNOWLEDGE
    | status::VIRTIO_CONFIG_S_DRIVER
    | status::VIRTIO_CONFIG_S_DRIVER_OK
    | status::VIRTIO_CONFIG_S_FEATURES_OK
    | status::VIRTIO_CONFIG_S_FAILED;
/// Features that a guest may see: those of the device type and of split queues. Other features change the transport (queue
/// reset, notification data, packed rings) or belong to vhost-user (bits 26 and 30).
const PASSED_ON: u64 = ((1 << 24) - 1)
    | (1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX)
    | (1 << feature::VERSION_1);

/// The registers that the guest can see and change. A migration carries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    /// The device status field.
    pub status: u32,
    /// Which half of the device's features is read.
    pub device_features_sel: u32,
    /// Which half of the driver's features is written.
    pub driver_features_sel: u32,
    /// What the driver accepted so far.
    pub driver_features: u64,
    /// Which queue the queue registers are about.
    pub queue_sel: u32,
    /// The queues.
    pub queues: [Queue; MAX_QUEUES],
    /// Counts the changes of the configuration space.
    pub config_generation: u32,
    /// The interrupt status has the configuration change bit.
    pub config_changed: bool,
}

/// What the device must do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// Stop all queues and forget the driver.
    Reset,
    /// Offer these features to the back end, and call [`Transport::accept_features`] if it accepts them.
    Negotiate(u64),
    /// The driver is up: run the queues that are ready.
    Start,
    /// Stop one queue.
    StopQueue(usize),
    /// Kick one queue.
    Notify(usize),
}

/// The device type behind the registers.
#[derive(Clone, Copy, Debug)]
pub struct DeviceType {
    /// The device id of the type.
    pub id: u32,
    /// Offsets of the 32-bit words of the configuration space that the driver may write.
    pub driver_words: &'static [usize],
}

/// The register file.
#[derive(Debug)]
pub struct Transport {
    device_type: DeviceType,
    offered: u64,
    queue_count: usize,
    registers: Registers,
    config: [u8; CONFIG_SIZE],
    ignored: u64,
}

impl Transport {
    /// A device in its state after power-on, with `queue_count` queues. Of `features`, the guest is offered those of the
    /// device type and of split queues.
    pub fn new(
        device_type: DeviceType,
        features: u64,
        queue_count: usize,
        config: [u8; CONFIG_SIZE],
    ) -> Self {
        Self {
            device_type,
            offered: features & PASSED_ON,
            queue_count: queue_count.min(MAX_QUEUES),
            registers: Registers::default(),
            config,
            ignored: 0,
        }
    }

    /// The features that the guest is offered.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The features that the driver uses; 0 before it has negotiated them.
    pub fn accepted(&self) -> u64 {
        let negotiated = self.registers.status & status::VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if negotiated {
            self.registers.driver_features
        } else {
            0
        }
    }

    /// The registers.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Loads the registers of another device, which the caller has checked.
    pub fn load(&mut self, registers: Registers) {
        self.registers = registers;
    }

    /// The configuration space as the guest sees it.
    pub fn config(&self) -> [u8; CONFIG_SIZE] {
        self.config
    }

    /// Invalid accesses of the guest, which were ignored.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The queues that the driver has made ready.
    pub fn ready_queues(&self) -> Vec<(usize, Queue)> {
        let queues = self.registers.queues.iter().copied().enumerate();
        queues.filter(|(_, queue)| queue.ready).collect()
    }

    /// Reads a register, or bytes of the configuration space.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG)) {
            let at = usize::try_from(at).unwrap_or(CONFIG_SIZE);
            for (byte, config) in data.iter_mut().zip(self.config.iter().skip(at)) {
                *byte = *config;
            }
        } else if data.len() == 4 {
            data.copy_from_slice(&self.register(offset).to_le_bytes());
        }
    }

    /// Takes a write to a register (not to the configuration space).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let value = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        let taken = match (u32::try_from(offset), value) {
            (Ok(offset), Ok(value)) => self.write_register(offset, value),
            _ => None,
        };
        taken.unwrap_or_else(|| {
            self.ignored += 1;
            Effect::None
        })
    }

    /// The offset in the configuration space of a write at `offset` of the device's window. Writes outside the driver's
    /// words are counted and return `None`.
    pub fn config_write(&mut self, offset: u64, len: usize) -> Option<usize> {
        let at = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG));
        let at = at.and_then(|at| usize::try_from(at).ok());
        let writable = |at: usize| {
            let mut words = self.device_type.driver_words.iter();
            words.any(|word| at >= *word && at + len <= word + 4)
        };
        let at = at.filter(|at| len > 0 && len <= 4 && *at < CONFIG_SIZE && writable(*at));
        if at.is_none() {
            self.ignored += 1;
        }
        at
    }

    /// Updates bytes that the guest wrote itself.
    pub fn update_config(&mut self, at: usize, data: &[u8]) {
        for (config, byte) in self.config.iter_mut().skip(at).zip(data) {
            *config = *byte;
        }
    }

    /// Replaces the configuration space, which the device changed. Returns whether the guest must be told.
    pub fn change_config(&mut self, config: [u8; CONFIG_SIZE]) -> bool {
        self.config = config;
        self.announce()
    }

    /// The back end has accepted the features, so the driver may go on.
    pub fn accept_features(&mut self) {
        self.registers.status |= status::VIRTIO_CONFIG_S_FEATURES_OK;
    }

    /// Marks the device as failed: it needs a reset. Returns whether the guest must be told.
    pub fn need_reset(&mut self) -> bool {
        self.registers.status |= status::VIRTIO_CONFIG_S_NEEDS_RESET;
        self.announce()
    }

    /// Whether the guest can be told of a change that it does not know yet.
    pub fn must_interrupt(&self) -> bool {
        self.registers.config_changed && self.has(status::VIRTIO_CONFIG_S_DRIVER_OK)
    }

    fn announce(&mut self) -> bool {
        self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
        self.registers.config_changed = true;
        self.must_interrupt()
    }

    fn has(&self, bit: u32) -> bool {
        self.registers.status & bit != 0
    }

    fn selected(&self) -> Option<&Queue> {
        let index = self.registers.queue_sel as usize;
        let queues = &self.registers.queues[..self.queue_count];
        queues.get(index)
    }

    fn register(&self, offset: u64) -> u32 {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let registers = &self.registers;
        match u32::try_from(offset).unwrap_or(u32::MAX) {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_type.id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, registers.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.selected().map_or(0, |_| u32::from(MAX_QUEUE_SIZE))
            }
            reg::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |q| u32::from(q.ready)),
            // The used buffer bit is always set: a back end raises these interrupts through KVM, so this process does
            // not know of them. At worst Linux checks every queue and finds nothing to do.
            reg::VIRTIO_MMIO_INTERRUPT_STATUS if registers.config_changed => {
                reg::VIRTIO_MMIO_INT_VRING | reg::VIRTIO_MMIO_INT_CONFIG
            }
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => reg::VIRTIO_MMIO_INT_VRING,
            reg::VIRTIO_MMIO_STATUS => registers.status,
            // All ones: there is no shared memory region.
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => registers.config_generation,
            _ => 0,
        }
    }

    /// `None` if the write is invalid now.
    fn write_register(&mut self, offset: u32, value: u32) -> Option<Effect> {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => return self.write_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                let index = value as usize;
                return (index < self.queue_count).then_some(Effect::Notify(index));
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                if value & reg::VIRTIO_MMIO_INT_CONFIG != 0 {
                    self.registers.config_changed = false;
                }
            }
            reg::VIRTIO_MMIO_STATUS => return self.write_status(value),
            reg::VIRTIO_MMIO_SHM_SEL => {}
            _ => return self.write_queue(offset, value),
        }
        Some(Effect::None)
    }

    fn write_features(&mut self, value: u32) -> Option<Effect> {
        let registers = &mut self.registers;
        if registers.status & status::VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return None;
        }
        let shift = match registers.driver_features_sel {
            0 => 0,
            1 => 32,
            // Linux writes only two halves; bits past 63 do not exist here.
            _ => return (value == 0).then_some(Effect::None),
        };
        registers.driver_features &= !(u64::from(u32::MAX) << shift);
        registers.driver_features |= u64::from(value) << shift;
        Some(Effect::None)
    }

    fn write_status(&mut self, value: u32) -> Option<Effect> {
        if value == 0 {
            let config_generation = self.registers.config_generation;
            self.registers = Registers {
                config_generation,
                ..Registers::default()
            };
            return Some(Effect::Reset);
        }
        let old = self.registers.status & DRIVER_STATUS;
        let new = value & DRIVER_STATUS;
        if old & !new != 0 {
            // The driver may only add bits.
            return None;
        }
        let added = new & !old;
        let ready_for_driver_ok = old & status::VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if added & status::VIRTIO_CONFIG_S_DRIVER_OK != 0 && !ready_for_driver_ok {
            return None;
        }
        // FEATURES_OK shows only once the back end has accepted.
        self.registers.status |= added & !status::VIRTIO_CONFIG_S_FEATURES_OK;
        if added & status::VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let features = self.registers.driver_features;
            let modern = features & (1 << feature::VERSION_1) != 0;
            return (modern && features & !self.offered == 0)
                .then_some(Effect::Negotiate(features));
        }
        let started = added & status::VIRTIO_CONFIG_S_DRIVER_OK != 0;
        Some(if started { Effect::Start } else { Effect::None })
    }

    fn write_queue(&mut self, offset: u32, value: u32) -> Option<Effect> {
        let live = self.has(status::VIRTIO_CONFIG_S_DRIVER_OK);
        let index = self.registers.queue_sel as usize;
        let queue = self.registers.queues[..self.queue_count].get_mut(index)?;
        if offset == reg::VIRTIO_MMIO_QUEUE_READY {
            return match (value, queue.ready, live) {
                (0, true, true) => {
                    queue.ready = false;
                    Some(Effect::StopQueue(index))
                }
                (0 | 1, _, false) | (0, false, true) => {
                    queue.ready = value == 1;
                    Some(Effect::None)
                }
                _ => None,
            };
        }
        // A queue that the device may be using must not change.
        if queue.ready || live {
            return None;
        }
        let low = |old: u64| old & !u64::from(u32::MAX) | u64::from(value);
        let high = |old: u64| old & u64::from(u32::MAX) | u64::from(value) << 32;
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => {
                let size = u16::try_from(value).ok();
                queue.size = size.filter(|size| *size <= MAX_QUEUE_SIZE)?;
            }
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.descriptors = low(queue.descriptors),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.descriptors = high(queue.descriptors),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.available = low(queue.available),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.available = high(queue.available),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.used = low(queue.used),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.used = high(queue.used),
            _ => return None,
        }
        Some(Effect::None)
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
