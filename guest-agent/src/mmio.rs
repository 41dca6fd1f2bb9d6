// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of a virtio device behind virtio-mmio, version 2 (virtio 1.2, section 4.2.2).
#![allow(unsafe_code)]

use core::ptr::NonNull;

/// What [`Register::Magic`] reads: "virt".
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// What [`Register::Version`] reads; 1 is the legacy interface.
pub const VERSION: u32 = 2;
/// Bytes of the register window up to the end of the balloon's configuration space.
pub const WINDOW_BYTES: usize = Register::Config as usize + spec::balloon::CONFIG_SIZE;

/// A register; the value is its offset in the window. All are 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Register {
    /// Reads [`MAGIC`].
    Magic = 0x00,
    /// Reads [`VERSION`].
    Version = 0x04,
    /// The kind of device; 0 for none.
    DeviceId = 0x08,
    /// 32 bits of the features that the device offers.
    DeviceFeatures = 0x10,
    /// Which 32.
    DeviceFeaturesSelect = 0x14,
    /// 32 bits of the features that the driver accepts.
    DriverFeatures = 0x20,
    /// Which 32.
    DriverFeaturesSelect = 0x24,
    /// The queue to which the queue registers apply.
    QueueSelect = 0x30,
    /// The most descriptors the queue may have; 0 if there is no such queue.
    QueueSizeMax = 0x34,
    /// Descriptors of the queue.
    QueueSize = 0x38,
    /// 1: the device may use the queue.
    QueueReady = 0x44,
    /// Writing a queue's number notifies the device of new buffers in the queue.
    QueueNotify = 0x50,
    /// Why the device interrupts, see [`INTERRUPT_CONFIG`].
    InterruptStatus = 0x60,
    /// Clears bits of [`Register::InterruptStatus`].
    InterruptAck = 0x64,
    /// The driver's progress, see [`status`]. Writing 0 resets the device.
    Status = 0x70,
    /// Address of the descriptor table, low half.
    QueueDescriptorsLow = 0x80,
    /// Its high half.
    QueueDescriptorsHigh = 0x84,
    /// Address of the available ring, low half.
    QueueAvailableLow = 0x90,
    /// Its high half.
    QueueAvailableHigh = 0x94,
    /// Address of the used ring, low half.
    QueueUsedLow = 0xa0,
    /// Its high half.
    QueueUsedHigh = 0xa4,
    /// The device's configuration space starts here.
    Config = 0x100,
}

/// The bit of [`Register::InterruptStatus`] for a change of the configuration space.
pub const INTERRUPT_CONFIG: u32 = 1 << 1;

/// Bits of [`Register::Status`] (virtio 1.2, section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u32 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u32 = 4;
    /// The features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The guest has given the device up.
    pub const FAILED: u32 = 128;
}

/// Access to the registers: [`Mmio`], or a device model in a test.
pub trait Registers {
    /// Reads a register.
    fn read(&self, register: Register) -> u32;
    /// Writes a register.
    fn write(&mut self, register: Register, value: u32);
    /// Reads the word of the configuration space at `offset` (a multiple of 4).
    fn read_config(&self, offset: usize) -> u32;
    /// Writes the word of the configuration space at `offset` (a multiple of 4).
    fn write_config(&mut self, offset: usize, value: u32);
}

/// A mapped register window.
#[derive(Debug)]
pub struct Mmio {
    base: NonNull<u32>,
}

// SAFETY: only this value uses the window, on any processor.
unsafe impl Send for Mmio {}

impl Mmio {
    /// The window at `base`.
    ///
    /// # Safety
    /// [`WINDOW_BYTES`] from `base` are mapped, uncached or trapped, and used through this value alone
    /// for as long as it lives.
    pub const unsafe fn new(base: NonNull<u32>) -> Self {
        Self { base }
    }

    fn word(&self, offset: usize) -> *mut u32 {
        assert!(offset + 4 <= WINDOW_BYTES && offset.is_multiple_of(4));
        // SAFETY: inside the window, by the assertion and the promise of `new`.
        unsafe { self.base.as_ptr().add(offset / 4) }
    }

    fn load(&self, offset: usize) -> u32 {
        // SAFETY: `word` is mapped and aligned; a volatile access is one 32-bit access to the device.
        u32::from_le(unsafe { self.word(offset).read_volatile() })
    }

    fn store(&mut self, offset: usize, value: u32) {
        // SAFETY: as in `load`.
        unsafe { self.word(offset).write_volatile(value.to_le()) }
    }
}

impl Registers for Mmio {
    fn read(&self, register: Register) -> u32 {
        self.load(register as usize)
    }

    fn write(&mut self, register: Register, value: u32) {
        self.store(register as usize, value);
    }

    fn read_config(&self, offset: usize) -> u32 {
        self.load(Register::Config as usize + offset)
    }

    fn write_config(&mut self, offset: usize, value: u32) {
        self.store(Register::Config as usize + offset, value);
    }
}
