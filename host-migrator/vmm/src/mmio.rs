// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that the guest reaches through memory accesses.

/// A device with registers in guest-physical memory.
///
/// Both calls come from vCPU threads. The guest chooses offset and length.
pub trait MmioDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` of the device's window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` of the device's window.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Where the guest finds a virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// Guest-physical address of its registers, below 4 GiB.
    pub gpa: u64,
    /// Its interrupt: an input of the I/O APIC, edge triggered.
    pub gsi: u32,
}
