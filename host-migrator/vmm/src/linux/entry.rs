// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state in which the first vCPU enters the kernel: 64-bit mode, flat segments, memory mapped one to
//! one, the zero page in RSI.

use kvm_bindings::{kvm_regs, kvm_sregs};
use spec::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::LinuxError;
use super::layout::{GDT, PAGE_TABLES, RESET_PORT, RESET_VALUE, RESET_VECTOR, ZERO_PAGE};
use crate::long_mode::{LongMode, entry};

/// How a loaded kernel is entered. The other vCPUs wait until the kernel starts them; KVM creates them in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinuxEntry {
    /// Guest-physical address of the first instruction.
    pub rip: u64,
}

impl LinuxEntry {
    /// The first vCPU's general registers.
    pub fn regs(&self) -> kvm_regs {
        kvm_regs {
            rip: self.rip,
            rsi: ZERO_PAGE,
            rflags: RFLAGS_FIXED,
            ..Default::default()
        }
    }

    /// The first vCPU's special registers, based on those that KVM sets at reset.
    pub fn sregs(&self, reset: kvm_sregs) -> kvm_sregs {
        LongMode {
            gdt: GDT,
            gdt_bytes: size_of_val(&DESCRIPTORS),
            code: CODE_SELECTOR,
            data: DATA_SELECTOR,
            page_tables: PAGE_TABLES,
        }
        .sregs(reset)
    }
}

const RFLAGS_FIXED: u64 = 1 << 1;

/// The selectors that the boot protocol asks for (`__BOOT_CS`, `__BOOT_DS`).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Two null descriptors, 64-bit code and flat data, as the selectors above number them.
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Tables of level 2; each maps 1 GiB.
const LEVEL_2_TABLES: u64 = 4;

/// Real-mode code for the reset vector: `mov al, RESET_VALUE; out RESET_PORT, al; hlt`. Linux restarts a
/// hardware-reduced machine without EFI this way, not by the reset register of the ACPI tables.
const RESET_CODE: [u8; 5] = [0xb0, RESET_VALUE, 0xe6, RESET_PORT as u8, 0xf4];

/// Writes the descriptor table and page tables of [`LinuxEntry::sregs`], and the code at the reset vector.
pub(super) fn write_tables<M: GuestMemoryBackend>(memory: &M) -> Result<(), LinuxError> {
    memory.write_slice(&little_endian(DESCRIPTORS), GuestAddress(GDT))?;
    memory.write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))?;
    let level_3 = PAGE_TABLES + PAGE_SIZE;
    let level_2 = level_3 + PAGE_SIZE;
    let table = entry::PRESENT | entry::WRITABLE;
    let pointers = (0..LEVEL_2_TABLES).map(|index| (level_2 + index * PAGE_SIZE) | table);
    let pages = (0..LEVEL_2_TABLES * entry::COUNT)
        .map(|page| (page * entry::LARGE_PAGE_BYTES) | table | entry::LARGE);
    memory.write_slice(&little_endian([level_3 | table]), GuestAddress(PAGE_TABLES))?;
    memory.write_slice(&little_endian(pointers), GuestAddress(level_3))?;
    memory.write_slice(&little_endian(pages), GuestAddress(level_2))?;
    Ok(())
}

fn little_endian(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
