// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Boots a stock x86-64 Linux kernel by its 64-bit boot protocol.
//!
//! [`load`] puts the kernel, the initial RAM disk, the command line, the memory map and ACPI tables into
//! guest memory; [`LinuxEntry`] is the state in which the first vCPU starts. Stock kernels find their virtio-mmio
//! devices in the ACPI tables, because distributions build that driver as a module without its command line parameter.
//!
//! Sources: the Linux kernel's `Documentation/arch/x86/boot.rst`, the ACPI specification 6.5.

mod acpi;
mod boot_params;
mod entry;
mod kernel;
pub mod layout;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

pub use self::entry::LinuxEntry;
use crate::mmio::MmioSlot;

/// A Linux guest to boot.
#[derive(Clone, Copy, Debug)]
pub struct LinuxBoot<'a> {
    /// The kernel: a bzImage, or an ELF `vmlinux`.
    pub kernel: &'a [u8],
    /// The initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// The kernel's command line, without a terminating zero byte.
    pub command_line: &'a str,
    /// Virtual CPUs, with local APIC ids from 0.
    pub vcpus: u8,
    /// The virtio-mmio devices.
    pub virtio_mmio: &'a [MmioSlot],
}

/// A Linux guest that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// The command line is too long or has characters that a kernel's command line cannot have.
    #[error("the kernel's command line of {len} bytes (at most {longest}) is refused: {source}")]
    CommandLine {
        /// Bytes it has.
        len: usize,
        /// Bytes that this kernel takes.
        longest: usize,
        /// Why it is refused.
        #[source]
        source: linux_loader::cmdline::Error,
    },
    /// The initial RAM disk does not fit between the kernel and the highest address that the kernel allows for it.
    #[error(
        "the initial RAM disk of {bytes} bytes does not fit between the kernel's end at {from:#x} and \
         {to:#x}: give the guest more memory"
    )]
    InitrdDoesNotFit {
        /// Bytes it has.
        bytes: u64,
        /// Where free memory starts.
        from: u64,
        /// Where it ends.
        to: u64,
    },
    /// The kernel does not fit into the guest's memory below 4 GiB.
    #[error(
        "the kernel needs memory up to {end:#x}, but the guest's ends at {low_end:#x}: give the \
         guest more memory"
    )]
    KernelDoesNotFit {
        /// End of what the kernel needs.
        end: u64,
        /// End of the guest's low memory.
        low_end: u64,
    },
    /// The kernel's file ends early.
    #[error("the kernel is cut off: its {part} needs {needed} bytes, but the file has {len}")]
    KernelCutOff {
        /// The part that is cut off.
        part: &'static str,
        /// Bytes that the file must have.
        needed: u64,
        /// Bytes that it has.
        len: u64,
    },
    /// Neither an ELF image nor a bzImage, or not one for this boot protocol.
    #[error("not a kernel that can be booted: {0}")]
    KernelFormat(&'static str),
    /// The loader refused the kernel.
    #[error(transparent)]
    Loader(#[from] linux_loader::loader::Error),
    /// Guest memory could not be written.
    #[error("cannot write guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The guest's memory does not start at 0 or ends below the kernel's place.
    #[error("the guest's memory must start at 0 and reach beyond 1 MiB")]
    NoLowMemory,
    /// A virtio-mmio device that the guest could not reach.
    #[error(
        "the virtio-mmio device at {:#x} is not below 4 GiB, or its interrupt {} is not one of the \
         I/O APIC's {}",
        .0.gpa, .0.gsi, layout::IO_APIC_INPUTS
    )]
    MmioSlot(MmioSlot),
    /// More virtio-mmio devices than the ACPI tables have room for.
    #[error(
        "{count} virtio-mmio devices are more than {}",
        layout::VIRTIO_MMIO_MAX
    )]
    TooManyDevices {
        /// Devices of the guest.
        count: usize,
    },
}

/// Puts everything that `boot` needs into `memory`, which has RAM from 0 to at most 0xc000_0000 and, if there is more,
/// from 4 GiB on.
///
/// # Errors
/// [`LinuxError`]; a part of `memory` may then be written.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    boot: &LinuxBoot<'_>,
) -> Result<LinuxEntry, LinuxError> {
    let low_end = memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.last_addr().raw_value().saturating_add(1));
    if low_end <= layout::HIGH_MEMORY {
        return Err(LinuxError::NoLowMemory);
    }
    let kernel = kernel::load(memory, low_end, boot.kernel)?;
    let tables = acpi::tables(boot.vcpus, boot.virtio_mmio)?;
    memory.write_slice(&tables, GuestAddress(layout::ACPI))?;
    boot_params::write(memory, low_end, &kernel, boot)?;
    entry::write_tables(memory)?;
    Ok(LinuxEntry { rip: kernel.entry })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use linux_loader::loader::bootparam::boot_params;
    use vm_memory::GuestMemoryMmap;

    pub(crate) const MIB: u64 = 1 << 20;
    /// Where low memory ends at most, and high memory starts.
    const LOW_MAX: u64 = 0xc000_0000;
    const HIGH_START: u64 = 1 << 32;

    /// Guest memory as a machine lays it out.
    pub(crate) fn memory(bytes: u64) -> GuestMemoryMmap<()> {
        let low = bytes.min(LOW_MAX);
        let mut ranges = vec![(GuestAddress(0), low as usize)];
        if bytes > low {
            ranges.push((GuestAddress(HIGH_START), (bytes - low) as usize));
        }
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    pub(crate) fn zero_page(memory: &GuestMemoryMmap<()>) -> boot_params {
        memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap()
    }

    #[test]
    fn memory_that_ends_below_the_kernels_place_is_refused() {
        let kernel = kernel::tests::elf();
        let boot = LinuxBoot {
            kernel: &kernel,
            initrd: None,
            command_line: "",
            vcpus: 1,
            virtio_mmio: &[],
        };
        let memory = memory(MIB);
        assert!(matches!(load(&memory, &boot), Err(LinuxError::NoLowMemory)));
    }

    #[test]
    fn a_loaded_kernel_is_entered_with_the_zero_page_in_rsi_and_flat_64_bit_segments() {
        let kernel = kernel::tests::elf();
        let boot = LinuxBoot {
            kernel: &kernel,
            initrd: Some(b"initrd"),
            command_line: "console=ttyS0",
            vcpus: 2,
            virtio_mmio: &[MmioSlot {
                gpa: 0xd000_0000,
                gsi: 5,
            }],
        };
        let memory = memory(64 * MIB);
        let entry = load(&memory, &boot).unwrap();
        let (regs, sregs) = (entry.regs(), entry.sregs(Default::default()));
        assert_eq!(
            (regs.rip, regs.rsi),
            (kernel::tests::ELF_ENTRY, layout::ZERO_PAGE)
        );
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.ds.db), (1, 0, 1));
        // The descriptors match the segment registers, and paging maps the entry one to one.
        let word = |at: u64| -> u64 { memory.read_obj(GuestAddress(at)).unwrap() };
        let code = word(sregs.gdt.base + u64::from(sregs.cs.selector));
        assert_eq!(code >> 53 & 1, 1, "the code descriptor is for 64-bit mode");
        let level_3 = word(sregs.cr3) & !0xfff;
        let level_2 = word(level_3) & !0xfff;
        let page = word(level_2 + (regs.rip >> 21) * 8);
        assert_eq!(page, regs.rip >> 21 << 21 | 0x83);
        let last = word((word(level_3 + 3 * 8) & !0xfff) + 511 * 8);
        assert_eq!(last, (HIGH_START - (2 << 20)) | 0x83);
        assert_eq!(zero_page(&memory).acpi_rsdp_addr.to_le(), layout::ACPI);
    }
}
