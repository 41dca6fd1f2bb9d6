// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! 64-bit mode from the first instruction on: flat segments, and paging by tables in guest memory.

use kvm_bindings::{kvm_segment, kvm_sregs};

/// The tables in memory for a vCPU that starts in 64-bit mode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongMode {
    /// Guest-physical address of the descriptor table.
    pub(crate) gdt: u64,
    /// Bytes of the descriptor table.
    pub(crate) gdt_bytes: usize,
    /// The selector of 64-bit code. Its two low bits are the privilege level, like those of `data`.
    pub(crate) code: u16,
    /// The selector of flat data.
    pub(crate) data: u16,
    /// Guest-physical address of the page table of level 4.
    pub(crate) page_tables: u64,
}

const CR0_PE: u64 = 1 << 0;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Segment types: code that can be executed and read, data that can be read and written; both accessed.
const SEGMENT_CODE: u8 = 0b1011;
const SEGMENT_DATA: u8 = 0b0011;

impl LongMode {
    /// The special registers, based on those that KVM sets at reset.
    pub(crate) fn sregs(&self, reset: kvm_sregs) -> kvm_sregs {
        let mut sregs = reset;
        sregs.cs = flat_segment(self.code, SEGMENT_CODE, true);
        let data = flat_segment(self.data, SEGMENT_DATA, false);
        (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
        (sregs.fs, sregs.gs) = (data, data);
        sregs.gdt.base = self.gdt;
        sregs.gdt.limit = (self.gdt_bytes - 1) as u16;
        sregs.cr0 |= CR0_PE | CR0_PG;
        sregs.cr3 = self.page_tables;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
        sregs
    }
}

/// A flat segment as the processor has it after loading its descriptor.
fn flat_segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: (selector & 3) as u8,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Bits of a page table's entry.
pub(crate) mod entry {
    pub(crate) const PRESENT: u64 = 1 << 0;
    pub(crate) const WRITABLE: u64 = 1 << 1;
    pub(crate) const USER: u64 = 1 << 2;
    /// In a table of level 2: the entry maps a page of [`LARGE_PAGE_BYTES`].
    pub(crate) const LARGE: u64 = 1 << 7;

    pub(crate) const LARGE_PAGE_BYTES: u64 = 2 << 20;
    /// Entries of a table.
    pub(crate) const COUNT: u64 = 512;
}
