// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What needs a real virtual machine: whether an interrupt has arrived, and a store by a vCPU.
#![allow(unsafe_code)]

use host_migrator::GuestRam;
use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuExit, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::rig::SLOT;

const CODE: u64 = 0x7000;

/// Whether the device's interrupt is pending in the old interrupt controller, whose inputs are edge-triggered.
pub fn interrupt_is_pending(vm: &VmFd) -> bool {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_PIC_MASTER,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: KVM has filled in the member that belongs to the chip's id.
    let requested = unsafe { chip.chip.pic.irr };
    requested & (1 << SLOT.gsi) != 0
}

/// Has a vCPU in real mode store `value` at `offset` of the device's window, and do nothing else. Panics if the store
/// causes an exit.
pub fn store_word(vm: &VmFd, ram: &GuestRam, offset: u32, value: u32) {
    let segment = (SLOT.gpa >> 4) as u16;
    let mut code = vec![0xb8];
    code.extend(segment.to_le_bytes()); // mov ax, segment
    code.extend([0x8e, 0xd8]); // mov ds, ax
    code.extend([0x66, 0xc7, 0x06]); // mov dword [offset], value
    code.extend((offset as u16).to_le_bytes());
    code.extend(value.to_le_bytes());
    code.extend([0xe6, 0x10]); // out 0x10, al
    ram.memory().write_slice(&code, GuestAddress(CODE)).unwrap();
    let host = ram.memory().get_host_address(GuestAddress(0)).unwrap();
    let below_the_hole = kvm_userspace_memory_region {
        memory_size: 0xa0000,
        userspace_addr: host.addr() as u64,
        ..Default::default()
    };
    // SAFETY: the first megabyte of guest memory is mapped for as long as `ram`, which outlives the vCPU.
    unsafe { vm.set_user_memory_region(below_the_hole) }.unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut segments = vcpu.get_sregs().unwrap();
    segments.cs.base = 0;
    segments.cs.selector = 0;
    vcpu.set_sregs(&segments).unwrap();
    let mut registers = vcpu.get_regs().unwrap();
    (registers.rip, registers.rflags) = (CODE, 2);
    vcpu.set_regs(&registers).unwrap();
    match vcpu.run().unwrap() {
        VcpuExit::IoOut(0x10, _) => {}
        exit => panic!("the vCPU left the guest: {exit:?}"),
    }
}
