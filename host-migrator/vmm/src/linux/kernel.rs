// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Loads a kernel, a bzImage or an ELF file, into guest memory.

use std::io::Cursor;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend};

use super::LinuxError;
use super::layout::HIGH_MEMORY;

/// A kernel in guest memory.
pub(super) struct LoadedKernel {
    /// Guest-physical address of the first instruction, for a CPU in 64-bit mode.
    pub entry: u64,
    /// End of the memory that the kernel uses before it reads the memory map.
    pub end: u64,
    /// Its setup header, for the zero page.
    pub header: setup_header,
}

/// Loads `image` into `memory`, which has RAM from 0 to `low_end`.
pub(super) fn load<M: GuestMemoryBackend>(
    memory: &M,
    low_end: u64,
    image: &[u8],
) -> Result<LoadedKernel, LinuxError> {
    if image.starts_with(b"\x7fELF") {
        load_elf(memory, low_end, image)
    } else {
        load_bzimage(memory, low_end, image)
    }
}

/// Offset of the setup header in a bzImage.
const SETUP_HEADER: u64 = 0x1f1;
/// "HdrS", the setup header's magic.
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The first version of the boot protocol with a 64-bit entry point.
const VERSION_64_BIT_ENTRY: u16 = 0x20c;
/// From the start of the protected-mode code to the 64-bit entry point.
const ENTRY_64_BIT: u64 = 0x200;
/// Bytes of a sector, the unit of `setup_sects`.
const SECTOR: u64 = 512;
/// Sectors of the real-mode code when `setup_sects` is 0.
const DEFAULT_SETUP_SECTORS: u8 = 4;

fn load_bzimage<M: GuestMemoryBackend>(
    memory: &M,
    low_end: u64,
    image: &[u8],
) -> Result<LoadedKernel, LinuxError> {
    let header = parse_setup_header(image)?;
    let load = header.pref_address;
    let end = load
        .checked_add(u64::from(header.init_size))
        .filter(|end| load >= HIGH_MEMORY && *end <= low_end)
        .ok_or(LinuxError::KernelDoesNotFit {
            end: load.saturating_add(u64::from(header.init_size)),
            low_end,
        })?;
    let loaded = BzImage::load(
        memory,
        Some(GuestAddress(load)),
        &mut Cursor::new(image),
        Some(GuestAddress(HIGH_MEMORY)),
    )?;
    Ok(LoadedKernel {
        entry: load + ENTRY_64_BIT,
        end: end.max(loaded.kernel_end),
        header,
    })
}

/// The setup header of a complete bzImage with a 64-bit entry point.
fn parse_setup_header(image: &[u8]) -> Result<setup_header, LinuxError> {
    let len = image.len() as u64;
    let header: setup_header = read_header(image, SETUP_HEADER, "setup header")?;
    let (magic, version) = (header.header, header.version);
    if magic != HEADER_MAGIC {
        return Err(LinuxError::KernelFormat(
            "it is neither an ELF image nor a bzImage",
        ));
    }
    if version < VERSION_64_BIT_ENTRY
        || header.xloadflags & XLF_KERNEL_64 == 0
        || header.loadflags & LOADED_HIGH == 0
    {
        return Err(LinuxError::KernelFormat(
            "the bzImage has no 64-bit entry point",
        ));
    }
    let setup_sectors = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTORS,
        sectors => sectors,
    };
    let needed = (u64::from(setup_sectors) + 1) * SECTOR + u64::from(header.syssize) * 16;
    if len < needed {
        return Err(LinuxError::KernelCutOff {
            part: "code",
            needed,
            len,
        });
    }
    Ok(header)
}

/// Highest address of the initial RAM disk's last byte, for kernels that do not specify it.
const INITRD_ADDRESS_MAX: u32 = 0x7fff_ffff;
/// Longest command line of an x86 kernel, without its terminating zero byte.
const COMMAND_LINE_MAX: u32 = 2047;

fn load_elf<M: GuestMemoryBackend>(
    memory: &M,
    low_end: u64,
    image: &[u8],
) -> Result<LoadedKernel, LinuxError> {
    let end = elf_end(image)?;
    if end > low_end {
        return Err(LinuxError::KernelDoesNotFit { end, low_end });
    }
    let loaded = Elf::load(
        memory,
        None,
        &mut Cursor::new(image),
        Some(GuestAddress(HIGH_MEMORY)),
    )?;
    let entry = loaded.kernel_load.0;
    if entry >= end {
        return Err(LinuxError::KernelFormat(
            "the ELF image's entry point is outside it",
        ));
    }
    let header = setup_header {
        boot_flag: 0xaa55,
        header: HEADER_MAGIC,
        version: VERSION_64_BIT_ENTRY,
        loadflags: LOADED_HIGH,
        initrd_addr_max: INITRD_ADDRESS_MAX,
        cmdline_size: COMMAND_LINE_MAX,
        ..Default::default()
    };
    Ok(LoadedKernel { entry, end, header })
}

/// End of the memory that the segments of a complete x86-64 ELF image take.
fn elf_end(image: &[u8]) -> Result<u64, LinuxError> {
    const CLASS: usize = 4;
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;

    let file_len = image.len() as u64;
    let header: Elf64_Ehdr = read_header(image, 0, "ELF header")?;
    if header.e_ident[CLASS] != CLASS_64 || header.e_machine != MACHINE_X86_64 {
        return Err(LinuxError::KernelFormat("the ELF image is not for x86-64"));
    }
    let mut end = 0;
    for index in 0..u64::from(header.e_phnum) {
        let at = index * size_of::<Elf64_Phdr>() as u64;
        let at = header.e_phoff.saturating_add(at);
        let segment: Elf64_Phdr = read_header(image, at, "ELF program header table")?;
        if segment.p_type != PT_LOAD {
            continue;
        }
        let needed = segment.p_offset.saturating_add(segment.p_filesz);
        if needed > file_len {
            return Err(LinuxError::KernelCutOff {
                part: "ELF segment",
                needed,
                len: file_len,
            });
        }
        let bytes = segment.p_memsz.max(segment.p_filesz);
        end = end.max(segment.p_paddr.saturating_add(bytes));
    }
    Ok(end)
}

/// The header at `offset` of a kernel's file; `part` is what it belongs to.
fn read_header<T: ByteValued + Default>(
    image: &[u8],
    offset: u64,
    part: &'static str,
) -> Result<T, LinuxError> {
    let mut header = T::default();
    let needed = offset.saturating_add(size_of::<T>() as u64);
    let bytes = usize::try_from(offset)
        .ok()
        .and_then(|offset| image.get(offset..)?.get(..size_of::<T>()))
        .ok_or(LinuxError::KernelCutOff {
            part,
            needed,
            len: image.len() as u64,
        })?;
    header.as_mut_slice().copy_from_slice(bytes);
    Ok(header)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::tests::{MIB, memory};
    use super::*;
    use vm_memory::Bytes;

    pub(crate) const ELF_ENTRY: u64 = 0x100_0000;
    const CODE: [u8; 32] = [0x90; 32];

    /// A vmlinux of one segment.
    pub(crate) fn elf() -> Vec<u8> {
        let mut header = Elf64_Ehdr {
            e_machine: 62,
            e_entry: ELF_ENTRY,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: 1,
            ..Default::default()
        };
        header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let segment = Elf64_Phdr {
            p_type: PT_LOAD,
            p_offset: (size_of::<Elf64_Ehdr>() + size_of::<Elf64_Phdr>()) as u64,
            p_paddr: ELF_ENTRY,
            p_filesz: CODE.len() as u64,
            p_memsz: 2 * MIB,
            ..Default::default()
        };
        [header.as_slice(), segment.as_slice(), &CODE].concat()
    }

    /// A bzImage with one sector of real-mode code.
    fn bzimage() -> Vec<u8> {
        let header = setup_header {
            setup_sects: 1,
            syssize: 64,
            header: HEADER_MAGIC,
            version: 0x20f,
            loadflags: LOADED_HIGH,
            xloadflags: XLF_KERNEL_64,
            code32_start: 0x10_0000,
            initrd_addr_max: INITRD_ADDRESS_MAX,
            cmdline_size: COMMAND_LINE_MAX,
            pref_address: ELF_ENTRY,
            init_size: 4 * MIB as u32,
            ..Default::default()
        };
        let mut image = vec![0; 1024];
        let at = SETUP_HEADER as usize;
        image[at..at + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        image.extend([0x90; 64 * 16]);
        image
    }

    const RAM: u64 = 64 * MIB;

    fn load_into_ram(image: &[u8]) -> Result<LoadedKernel, LinuxError> {
        load(&memory(RAM), RAM, image)
    }

    #[test]
    fn an_elf_kernel_is_put_at_its_physical_addresses() {
        let memory = memory(RAM);
        let kernel = load(&memory, RAM, &elf()).unwrap();
        assert_eq!((kernel.entry, kernel.end), (ELF_ENTRY, ELF_ENTRY + 2 * MIB));
        let code: [u8; 32] = memory.read_obj(GuestAddress(ELF_ENTRY)).unwrap();
        assert_eq!(code, CODE);
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry_and_keeps_room_to_unpack_itself() {
        let kernel = load_into_ram(&bzimage()).unwrap();
        assert_eq!(kernel.entry, ELF_ENTRY + ENTRY_64_BIT);
        assert_eq!(kernel.end, ELF_ENTRY + 4 * MIB);
    }

    #[test]
    fn a_kernel_cut_off_at_any_byte_is_refused() {
        for image in [elf(), bzimage()] {
            for len in 0..image.len() {
                let cut = load_into_ram(&image[..len]).err();
                assert!(
                    matches!(cut, Some(LinuxError::KernelCutOff { .. })),
                    "{len}: {cut:?}"
                );
            }
        }
    }

    #[test]
    fn garbage_in_any_header_byte_causes_no_panic() {
        for image in [elf(), bzimage()] {
            let headers = image
                .len()
                .min(SETUP_HEADER as usize + size_of::<setup_header>());
            for at in 0..headers {
                for byte in [0, 0x7f, 0x80, 0xff] {
                    let mut image = image.clone();
                    image[at] = byte;
                    let _ = load_into_ram(&image);
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_not_a_kernel_is_refused_as_such() {
        let no_kernel = vec![0x55; 4096];
        let mut no_entry = bzimage();
        no_entry[0x236] = 0;
        let mut other_machine = elf();
        other_machine[18] = 0xb7;
        let mut entry_outside = elf();
        entry_outside[27] = 0x7f;
        for image in [no_kernel, no_entry, other_machine, entry_outside] {
            let error = load_into_ram(&image).err();
            assert!(
                matches!(error, Some(LinuxError::KernelFormat(_))),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_kernel_larger_than_low_memory_is_refused() {
        let mut elf = elf();
        // The upper half of the segment's length in memory.
        elf[64 + 44] = 1;
        let mut bzimage = bzimage();
        // The upper byte of init_size.
        bzimage[0x263] = 0x7f;
        for image in [elf, bzimage] {
            let error = load_into_ram(&image).err();
            assert!(
                matches!(error, Some(LinuxError::KernelDoesNotFit { .. })),
                "{error:?}"
            );
        }
    }
}
