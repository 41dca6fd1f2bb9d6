// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The start of a vCPU, and the VMM's boot information.
#![allow(unsafe_code)]

use core::arch::global_asm;

use spec::bare::BootInfo;

// The stack pointer should be aligned already; this makes sure.
global_asm!(
    ".section .text.start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    ".text",
    entry = sym entry,
);

/// The first Rust function of every vCPU: the boot ABI of [`spec::bare`].
extern "C" fn entry(vcpu: u64, info: *const [u64; BootInfo::WORDS]) -> ! {
    // SAFETY: the VMM wrote the boot info there, aligned, before it started any vCPU, and does not change it.
    let words = unsafe { info.read() };
    match BootInfo::from_words(words) {
        Some(info) => crate::run(vcpu, &info),
        None => crate::console::fail(format_args!("bare guest: no boot info")),
    }
}
