// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts the bare-metal guest in the state that [`spec::bare`] specifies.
//!
//! The guest starts in 64-bit mode at privilege level 3, with all memory and the device window mapped one to
//! one. It has no interrupt descriptor table, so an exception ends it.

use std::io::Cursor;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use spec::PAGE_SIZE;
use spec::bare::{
    AnswerPolicy, BOOT_INFO_GPA, BootInfo, HIGH_MEMORY_START, HoldPolicy, IMAGE_GPA,
    LOW_MEMORY_END, MAX_VCPUS, MMIO_GPA, READ_TIMES_GPA, STACK_BYTES,
};
use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion,
};

use crate::long_mode::{LongMode, entry};

/// The guest's workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BareWorkload {
    /// The seed of all random choices.
    pub seed: u64,
    /// Bytes that stay in use.
    pub in_use_bytes: u64,
    /// Bytes written once and then freed.
    pub freed_bytes: u64,
    /// Bytes a second that are written to pages in use.
    pub dirty_rate: u64,
    /// Pages a second that are freed and allocated again.
    pub churn_rate: u64,
    /// When a hinted page is reused.
    pub hold: HoldPolicy,
    /// How a request for hints is answered.
    pub answer: AnswerPolicy,
    /// When it is ready, the guest writes and checks nothing.
    pub idle: bool,
}

/// A bare guest that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The image is not a program for this machine.
    #[error("the bare guest's image cannot be loaded: {0}")]
    Image(String),
    /// Guest memory could not be written.
    #[error("cannot write guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The image, the stacks or the page tables do not fit.
    #[error("the bare guest needs {0}")]
    DoesNotFit(&'static str),
    /// No vCPU, or too many.
    #[error("the bare guest has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u64),
}

/// How the vCPUs enter the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareEntry {
    rip: u64,
    stacks: u64,
}

/// Puts the program `image`, its tables and its boot information into `memory`.
///
/// # Errors
/// [`BareError`]; a part of `memory` may then be written.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    image: &[u8],
    workload: &BareWorkload,
    vcpus: u64,
    tsc_khz: u32,
) -> Result<BareEntry, BareError> {
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return Err(BareError::Vcpus(vcpus));
    }
    let low_bytes = bytes_of_region(memory, 0);
    let loaded = Elf::load(memory, None, &mut Cursor::new(image), None)
        .map_err(|error| BareError::Image(error.to_string()))?;
    let stacks = image_end(image)?.next_multiple_of(PAGE_SIZE);
    let stacks_end = stacks + vcpus * STACK_BYTES;
    if stacks_end > low_bytes {
        return Err(BareError::DoesNotFit(
            "more memory for its image and stacks",
        ));
    }
    let info = BootInfo {
        low_bytes,
        high_bytes: bytes_of_region(memory, HIGH_MEMORY_START),
        stacks_end,
        vcpus,
        tsc_khz: tsc_khz.into(),
        seed: workload.seed,
        in_use_bytes: workload.in_use_bytes,
        freed_bytes: workload.freed_bytes,
        dirty_rate: workload.dirty_rate,
        churn_rate: workload.churn_rate,
        hold: workload.hold as u64,
        answer: workload.answer as u64,
        idle: workload.idle.into(),
    };
    write_words(memory, BOOT_INFO_GPA, info.to_words())?;
    write_words(memory, GDT, DESCRIPTORS)?;
    memory.write_obj(PORT_MAP, GuestAddress(TASK_STATE + PORT_MAP_FIELD))?;
    let map_end = GuestAddress(TASK_STATE + u64::from(TASK_STATE_LIMIT));
    memory.write_obj(u8::MAX, map_end)?;
    write_page_tables(memory, &info)?;
    Ok(BareEntry {
        rip: loaded.kernel_load.raw_value(),
        stacks,
    })
}

/// Bytes of the region that starts at `gpa`; 0 if there is none.
fn bytes_of_region<M: GuestMemoryBackend>(memory: &M, gpa: u64) -> u64 {
    memory
        .find_region(GuestAddress(gpa))
        .filter(|region| region.start_addr().raw_value() == gpa)
        .map_or(0, |region| region.len())
}

/// Where the program's memory ends, including its zero-initialised part, which is not in the file.
fn image_end(image: &[u8]) -> Result<u64, BareError> {
    let cut_off = || BareError::Image("its program headers are cut off".into());
    let header: Elf64_Ehdr = read_at(image, 0).ok_or_else(cut_off)?;
    let mut end = IMAGE_GPA;
    for index in 0..u64::from(header.e_phnum) {
        let at = index * size_of::<Elf64_Phdr>() as u64;
        let segment: Elf64_Phdr = header
            .e_phoff
            .checked_add(at)
            .and_then(|at| read_at(image, at))
            .ok_or_else(cut_off)?;
        if segment.p_type == PT_LOAD {
            end = end.max(segment.p_paddr.saturating_add(segment.p_memsz));
        }
    }
    if end > LOW_MEMORY_END {
        return Err(BareError::DoesNotFit(
            "an image that ends below the devices",
        ));
    }
    Ok(end)
}

fn read_at<T: ByteValued>(image: &[u8], at: u64) -> Option<T> {
    let at = usize::try_from(at).ok()?;
    let bytes = image.get(at..)?.get(..size_of::<T>())?;
    let mut value = T::zeroed();
    value.as_mut_slice().copy_from_slice(bytes);
    Some(value)
}

const GDT: u64 = 0x1000;
/// The task state segment. No vCPU changes its privilege level, so only the I/O permission bitmap matters: a software
/// KVM checks the bitmap even if the I/O privilege level would suffice.
const TASK_STATE: u64 = 0x2000;
/// Where the task state segment has the offset of its I/O permission bitmap, and where the bitmap is: one bit for each
/// port, 0 if the port may be used, and a byte of ones at the end.
const PORT_MAP_FIELD: u64 = 0x66;
const PORT_MAP: u16 = 0x68;
const PORT_MAP_BYTES: u16 = 8192;
const TASK_STATE_LIMIT: u32 = PORT_MAP as u32 + PORT_MAP_BYTES as u32;
const PAGE_TABLES: u64 = 0x1_0000;

/// Null, 64-bit code and flat data, both for privilege level 3; then the two words of the task state segment.
const DESCRIPTORS: [u64; 5] = [
    0,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x0000_8b00_0000_0000 | TASK_STATE << 16 | TASK_STATE_LIMIT as u64,
    0,
];
const CODE_SELECTOR: u16 = 1 << 3 | 3;
const DATA_SELECTOR: u16 = 2 << 3 | 3;
const TASK_SELECTOR: u16 = 3 << 3;

const TABLE: u64 = entry::PRESENT | entry::WRITABLE | entry::USER;
/// Bytes that one page table of level 2 maps.
const LEVEL_2_BYTES: u64 = entry::COUNT * entry::LARGE_PAGE_BYTES;

/// Maps the memory, rounded up to large pages, and the device window.
fn write_page_tables<M: GuestMemoryBackend>(memory: &M, info: &BootInfo) -> Result<(), BareError> {
    let high_end = HIGH_MEMORY_START + info.high_bytes;
    let level_2_tables = high_end.div_ceil(LEVEL_2_BYTES);
    let level_3 = PAGE_TABLES + PAGE_SIZE;
    let level_2 = level_3 + PAGE_SIZE;
    if level_2_tables > entry::COUNT || level_2 + level_2_tables * PAGE_SIZE > READ_TIMES_GPA {
        return Err(BareError::DoesNotFit(
            "less memory: its page tables have no room",
        ));
    }
    write_words(memory, PAGE_TABLES, [level_3 | TABLE])?;
    let pointers = (0..level_2_tables).map(|index| (level_2 + index * PAGE_SIZE) | TABLE);
    write_words(memory, level_3, pointers)?;
    let mapped = |address: u64| {
        address < info.low_bytes
            || address == MMIO_GPA
            || (HIGH_MEMORY_START..high_end).contains(&address)
    };
    let pages = (0..level_2_tables * entry::COUNT)
        .map(|page| page * entry::LARGE_PAGE_BYTES)
        .map(|address| {
            if mapped(address) {
                address | TABLE | entry::LARGE
            } else {
                0
            }
        });
    write_words(memory, level_2, pages)
}

fn write_words<M: GuestMemoryBackend>(
    memory: &M,
    gpa: u64,
    words: impl IntoIterator<Item = u64>,
) -> Result<(), BareError> {
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    Ok(memory.write_slice(&bytes, GuestAddress(gpa))?)
}

const RFLAGS_FIXED: u64 = 1 << 1;
/// Ports may be used at privilege level 3.
const RFLAGS_IOPL_3: u64 = 3 << 12;
/// Monitor coprocessor, numeric errors, write protect, alignment mask; the caches are on.
const CR0: u64 = 1 << 1 | 1 << 5 | 1 << 16 | 1 << 18;
const CR0_CACHES_OFF: u64 = 1 << 29 | 1 << 30;
/// FXSAVE, SIMD exceptions.
const CR4: u64 = 1 << 9 | 1 << 10;
/// System calls, no-execute.
const EFER: u64 = 1 << 0 | 1 << 11;
/// The segment type of a busy task state segment.
const SEGMENT_BUSY_TASK: u8 = 0b1011;

impl BareEntry {
    /// The general registers of vCPU `number`.
    pub fn regs(&self, number: u64) -> kvm_regs {
        kvm_regs {
            rip: self.rip,
            rdi: number,
            rsi: BOOT_INFO_GPA,
            rsp: self.stacks + (number + 1) * STACK_BYTES,
            rflags: RFLAGS_FIXED | RFLAGS_IOPL_3,
            ..Default::default()
        }
    }

    /// The special registers, based on those that KVM sets at reset.
    pub fn sregs(&self, reset: kvm_sregs) -> kvm_sregs {
        let mut sregs = LongMode {
            gdt: GDT,
            gdt_bytes: size_of_val(&DESCRIPTORS),
            code: CODE_SELECTOR,
            data: DATA_SELECTOR,
            page_tables: PAGE_TABLES,
        }
        .sregs(reset);
        sregs.tr = kvm_segment {
            base: TASK_STATE,
            limit: TASK_STATE_LIMIT,
            selector: TASK_SELECTOR,
            type_: SEGMENT_BUSY_TASK,
            present: 1,
            ..Default::default()
        };
        sregs.ldt = kvm_segment {
            unusable: 1,
            ..Default::default()
        };
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = sregs.cr0 & !CR0_CACHES_OFF | CR0;
        sregs.cr4 |= CR4;
        sregs.efer |= EFER;
        sregs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::BARE_GUEST;
    use crate::memory::{MachineMemory, MemoryOptions};

    fn load_into(bytes: u64, image: &[u8], vcpus: u64) -> Result<BareEntry, BareError> {
        let memory = MachineMemory::new(bytes, MemoryOptions::default()).unwrap();
        load(
            &**memory.own(),
            image,
            &BareWorkload::default(),
            vcpus,
            1_000_000,
        )
    }

    #[test]
    fn the_image_is_loaded_where_it_is_linked_for_and_stacks_follow_it() {
        let entry = load_into(64 << 20, BARE_GUEST, 2).unwrap();
        assert!(entry.rip >= IMAGE_GPA && entry.rip < entry.stacks);
        assert_eq!(
            entry.stacks,
            image_end(BARE_GUEST).unwrap().next_multiple_of(PAGE_SIZE)
        );
        assert_eq!(entry.regs(1).rsp - entry.regs(0).rsp, STACK_BYTES);
    }

    #[test]
    fn machines_that_are_too_small_or_have_odd_numbers_of_vcpus_are_refused() {
        assert!(matches!(
            load_into(1 << 20, BARE_GUEST, 1),
            Err(BareError::Image(_))
        ));
        for vcpus in [0, MAX_VCPUS + 1] {
            assert!(matches!(
                load_into(64 << 20, BARE_GUEST, vcpus),
                Err(BareError::Vcpus(_))
            ));
        }
    }

    #[test]
    fn an_image_that_is_cut_off_anywhere_in_its_headers_is_refused() {
        for len in 0..64 {
            assert!(
                load_into(64 << 20, &BARE_GUEST[..len], 1).is_err(),
                "{len} bytes"
            );
        }
    }
}
