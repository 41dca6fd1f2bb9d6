// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The zero page: the boot loader's parameters for the kernel, with the memory map, the command line and the initial RAM
//! disk.

use linux_loader::cmdline::Cmdline;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::load_cmdline;
use spec::PAGE_SIZE;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::kernel::LoadedKernel;
use super::layout::{ACPI, COMMAND_LINE, HIGH_MEMORY, HOLE, ZERO_PAGE};
use super::{LinuxBoot, LinuxError};

/// A boot loader without a registered number.
const LOADER_UNDEFINED: u8 = 0xff;

/// Writes the command line, the initial RAM disk and the zero page into `memory`, which has RAM from 0 to `low_end`.
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

/// Address and length of an initial RAM disk of `bytes`: as high as kernel and memory allow.
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

/// The memory map: the regions of `memory` as RAM, except for the PC's hole, which holds the ACPI tables.
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

#[cfg(test)]
mod tests {
    use super::super::tests::{MIB, memory, zero_page};
    use super::super::{kernel, load};
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Loads a small kernel with these and returns the zero page.
    fn boot(
        bytes: u64,
        initrd: Option<&[u8]>,
        command_line: &str,
    ) -> Result<boot_params, LinuxError> {
        let memory = memory(bytes);
        let boot = LinuxBoot {
            kernel: &kernel::tests::elf(),
            initrd,
            command_line,
            vcpus: 1,
            virtio_mmio: &[],
        };
        load(&memory, &boot)?;
        Ok(zero_page(&memory))
    }

    fn map_of(bytes: u64) -> Vec<(u64, u64, u32)> {
        let params = boot(bytes, None, "").unwrap();
        let entries = params.e820_table[..params.e820_entries.into()].iter();
        entries
            .map(|entry| (entry.addr, entry.size, entry.r#type))
            .collect()
    }

    #[test]
    fn the_memory_map_has_all_memory_but_the_hole_of_the_pc() {
        let below = [(0, HOLE, E820_RAM), (ACPI, HIGH_MEMORY - ACPI, E820_ACPI)];
        let low = |end| [&below[..], &[(HIGH_MEMORY, end - HIGH_MEMORY, E820_RAM)]].concat();
        assert_eq!(map_of(512 * MIB), low(512 * MIB));
        assert_eq!(map_of(3 * GIB), low(3 * GIB));
        let high = (4 * GIB, 3 * GIB, E820_RAM);
        assert_eq!(map_of(6 * GIB), [low(3 * GIB), vec![high]].concat());
    }

    #[test]
    fn the_initial_ram_disk_lies_at_the_top_of_the_memory_the_kernel_takes_it_from() {
        let disk = vec![0xa5; 3 * PAGE_SIZE as usize + 1];
        let address = |bytes| {
            let header = boot(bytes, Some(&disk), "").unwrap().hdr;
            assert_eq!({ header.ramdisk_size }, disk.len() as u32);
            u64::from(header.ramdisk_image)
        };
        assert_eq!(address(512 * MIB), 512 * MIB - 4 * PAGE_SIZE);
        // This kernel accepts it below 2 GiB only.
        assert_eq!(address(6 * GIB), 2 * GIB - 4 * PAGE_SIZE);
    }

    #[test]
    fn an_initial_ram_disk_that_does_not_fit_above_the_kernel_is_refused() {
        let disk = vec![0; 30 * MIB as usize];
        let error = boot(32 * MIB, Some(&disk), "").unwrap_err();
        assert!(
            matches!(error, LinuxError::InitrdDoesNotFit { .. }),
            "{error}"
        );
        let disk = vec![0; 33 * MIB as usize];
        let error = boot(32 * MIB, Some(&disk), "").unwrap_err();
        assert!(
            matches!(error, LinuxError::InitrdDoesNotFit { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_command_line_longer_than_the_kernel_takes_or_with_control_characters_is_refused() {
        let longest = "x".repeat(2047);
        boot(32 * MIB, None, &longest).unwrap();
        for line in [longest + "x", "a\0b".into(), "a\nb".into()] {
            let error = boot(32 * MIB, None, &line).unwrap_err();
            assert!(matches!(error, LinuxError::CommandLine { .. }), "{error}");
        }
    }
}
