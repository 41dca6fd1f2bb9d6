// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The zero page: what the boot loader tells the kernel, with the memory map, the command line and the
//! initial RAM disk.

use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::load_cmdline;
use spec::PAGE_SIZE;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::kernel::LoadedKernel;
use super::layout::{ACPI, COMMAND_LINE, HIGH_MEMORY, HOLE, ZERO_PAGE};
use super::{LinuxBoot, LinuxError};

/// A boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the command line, the initial RAM disk and the zero page that tells of them into `memory`,
/// which has RAM from 0 to `low_end`.
pub(super) fn write<M: GuestMemoryBackend>(
    memory: &M,
    low_end: u64,
    kernel: &LoadedKernel,
    boot: &LinuxBoot<'_>,
) -> Result<(), LinuxError> {
    let mut params = boot_params {
        hdr: kernel.header,
        acpi_rsdp_addr: ACPI,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    let longest = kernel.header.cmdline_size as usize;
    write_command_line(memory, boot.command_line, longest)?;
    if let Some(initrd) = boot.initrd {
        let (address, len) = place_initrd(initrd.len() as u64, low_end, kernel)?;
        memory.write_slice(initrd, GuestAddress(address.into()))?;
        params.hdr.ramdisk_image = address;
        params.hdr.ramdisk_size = len;
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(memory_map(memory)) {
        *slot = entry;
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(ZERO_PAGE))?;
    Ok(())
}

/// Writes the command line of at most `longest` bytes and its terminating zero byte.
fn write_command_line<M: GuestMemoryBackend>(
    memory: &M,
    text: &str,
    longest: usize,
) -> Result<(), LinuxError> {
    let room = (HOLE - COMMAND_LINE) as usize - 1;
    let longest = longest.min(room);
    let refused = |source| LinuxError::CommandLine {
        len: text.len(),
        longest,
        source,
    };
    let mut line = Cmdline::new(longest + 1).map_err(refused)?;
    line.insert_str(text).map_err(refused)?;
    Ok(load_cmdline(memory, GuestAddress(COMMAND_LINE), &line)?)
}

/// Address and length of an initial RAM disk of `bytes`: as high as the kernel takes it and memory goes.
fn place_initrd(bytes: u64, low_end: u64, kernel: &LoadedKernel) -> Result<(u32, u32), LinuxError> {
    let to = low_end.min(u64::from(kernel.header.initrd_addr_max) + 1);
    let does_not_fit = LinuxError::InitrdDoesNotFit {
        bytes,
        from: kernel.end,
        to,
    };
    let address = to
        .checked_sub(bytes)
        .map(|address| address & !(PAGE_SIZE - 1))
        .filter(|address| *address >= kernel.end);
    match (address.map(u32::try_from), u32::try_from(bytes)) {
        (Some(Ok(address)), Ok(len)) => Ok((address, len)),
        _ => Err(does_not_fit),
    }
}

/// Type of memory that the guest may use.
const E820_RAM: u32 = 1;
/// Type of memory that holds ACPI tables.
const E820_ACPI: u32 = 3;

/// The memory map: the regions of `memory` as RAM, but for the PC's hole, in which the ACPI tables lie.
fn memory_map<M: GuestMemoryBackend>(memory: &M) -> Vec<boot_e820_entry> {
    let entry = |from: u64, to: u64, r#type| boot_e820_entry {
        addr: from,
        size: to - from,
        r#type,
    };
    let mut map = Vec::new();
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let end = start + region.len();
        if start == 0 {
            map.push(entry(0, HOLE, E820_RAM));
            map.push(entry(ACPI, HIGH_MEMORY, E820_ACPI));
            map.push(entry(HIGH_MEMORY, end, E820_RAM));
        } else {
            map.push(entry(start, end, E820_RAM));
        }
    }
    map
}
