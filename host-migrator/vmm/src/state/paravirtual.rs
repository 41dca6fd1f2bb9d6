// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that KVM itself writes for a Linux guest: its clock, stolen time, and the like.
//!
//! The guest names them in model-specific registers (Linux, `Documentation/virt/kvm/x86/msr.rst`). KVM writes
//! them when it loads a vCPU, at the destination from the destination's own clock; so their content does not
//! migrate, and a comparison of both sides must know them.

use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::VcpuFd;
use spec::{PAGE_SHIFT, PageRange};

use super::StateError;
use super::vcpu::msr_list;

/// A register whose value holds an address.
struct AddressRegister {
    index: u32,
    /// Bits of the value that are no address.
    flags: u64,
    /// Whether bit 0 says that the address counts.
    has_enable_bit: bool,
}

const REGISTERS: [AddressRegister; 7] = [
    // MSR_KVM_WALL_CLOCK, _SYSTEM_TIME, and their newer numbers.
    AddressRegister {
        index: 0x11,
        flags: 0,
        has_enable_bit: false,
    },
    AddressRegister {
        index: 0x12,
        flags: 1,
        has_enable_bit: true,
    },
    AddressRegister {
        index: 0x4b56_4d00,
        flags: 0,
        has_enable_bit: false,
    },
    AddressRegister {
        index: 0x4b56_4d01,
        flags: 1,
        has_enable_bit: true,
    },
    // MSR_KVM_ASYNC_PF_EN, _STEAL_TIME, _PV_EOI_EN.
    AddressRegister {
        index: 0x4b56_4d02,
        flags: 0x3f,
        has_enable_bit: true,
    },
    AddressRegister {
        index: 0x4b56_4d03,
        flags: 0x3f,
        has_enable_bit: true,
    },
    AddressRegister {
        index: 0x4b56_4d04,
        flags: 0x3,
        has_enable_bit: true,
    },
];

/// The pages that KVM writes for `vcpu`. A register that this KVM does not have names none.
///
/// # Errors
/// [`StateError`] if no list of registers can be made.
pub fn pages_of(vcpu: &VcpuFd) -> Result<Vec<PageRange>, StateError> {
    let mut pages = Vec::new();
    for register in &REGISTERS {
        let entry = kvm_msr_entry {
            index: register.index,
            ..Default::default()
        };
        let mut list = msr_list(&[entry])?;
        let value = match vcpu.get_msrs(&mut list) {
            Ok(1) => list.as_slice()[0].data,
            _ => continue,
        };
        let enabled = if register.has_enable_bit {
            value & 1 != 0
        } else {
            value != 0
        };
        if enabled {
            pages.extend(PageRange::new((value & !register.flags) >> PAGE_SHIFT, 1));
        }
    }
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}
