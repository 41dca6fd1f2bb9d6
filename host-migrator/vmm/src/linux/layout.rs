// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the boot protocol's structures are in the first MiB of guest memory, and the platform's fixed addresses.
//!
//! ```text
//! 0x0000_0500  global descriptor table
//! 0x0000_7000  zero page (boot_params)
//! 0x0000_9000  page tables: level 4, level 3, four of level 2
//! 0x0002_0000  command line
//! 0x000a_0000  (the PC's hole: not RAM for the guest)
//! 0x000e_0000    ACPI tables, the root pointer first
//! 0x000f_fff0    reset vector
//! 0x0010_0000  RAM again: the kernel; the initial RAM disk at the upper end
//! ```

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// The zero page: `boot_params` of the boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables that map the first 4 GiB one to one.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Start of the PC's hole for video memory and firmware.
pub const HOLE: u64 = 0xa_0000;
/// ACPI tables; in the range that systems search for the root pointer.
pub const ACPI: u64 = 0xe_0000;
/// Where kernels jump to, in real mode, to restart the machine.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the PC's hole; the kernel is loaded from here upwards.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Registers of the local interrupt controllers (KVM's in-kernel one has them here).
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Registers of the I/O interrupt controller (KVM's in-kernel one has them here).
pub const IO_APIC: u32 = 0xfec0_0000;
/// Interrupts that the I/O interrupt controller takes, numbered from 0.
pub const IO_APIC_INPUTS: u32 = 24;

/// First I/O port of the serial console.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt of the serial console.
pub const SERIAL_GSI: u32 = 4;
/// The guest resets the machine by writing [`RESET_VALUE`] to this I/O port (the keyboard controller's).
pub const RESET_PORT: u16 = 0x64;
/// What is written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0xfe;
/// The guest powers the machine off by writing [`POWER_OFF_VALUE`] to this I/O port.
pub const POWER_OFF_PORT: u16 = 0x604;
/// What is written to [`POWER_OFF_PORT`]: the sleep type, and the bit that starts the transition.
pub const POWER_OFF_VALUE: u8 = (POWER_OFF_SLEEP_TYPE << 2) | (1 << 5);
/// The sleep type that the tables give for the state "soft off".
pub const POWER_OFF_SLEEP_TYPE: u8 = 5;
/// The I/O port of the sleep status, which reads as 0. Writes to it have no effect.
pub const SLEEP_STATUS_PORT: u16 = POWER_OFF_PORT + 1;

/// Bytes of registers of a virtio-mmio device.
pub const VIRTIO_MMIO_LEN: u32 = spec::bare::MMIO_BYTES as u32;
/// Most virtio-mmio devices that the ACPI tables have room for.
pub const VIRTIO_MMIO_MAX: usize = 256;
