// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every register that holds a value arrives with it, whether KVM's index list has it or not.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_debugregs, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use reference_vmm::cpuid;
use reference_vmm::description::carried_msrs;
use reference_vmm::state::VcpuState;
use reference_vmm::state::registers::{Fate, row_of};

use crate::guests::have_kvm;

/// A vCPU with the CPUID that guests get, and everything that keeps it alive.
struct Subject {
    vcpu: VcpuFd,
    vm: VmFd,
    kvm: Kvm,
}

impl Subject {
    fn new() -> Self {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let supported = cpuid::supported(&kvm).unwrap();
        vcpu.set_cpuid2(&cpuid::for_vcpu(&supported, 0, 1).unwrap())
            .unwrap();
        Self { vcpu, vm, kvm }
    }

    fn get(&self, index: u32) -> Option<u64> {
        let mut msrs = one(index, 0);
        (self.vcpu.get_msrs(&mut msrs).unwrap() == 1).then(|| msrs.as_slice()[0].data)
    }

    /// Sets a register. Returns whether it then holds the value.
    fn set(&self, index: u32, data: u64) -> bool {
        let taken = self.vcpu.set_msrs(&one(index, data)).unwrap() == 1;
        taken && self.get(index) == Some(data)
    }

    fn save(&self) -> VcpuState {
        let indices = carried_msrs(&self.kvm).unwrap();
        VcpuState::save(&self.vm, &self.vcpu, &indices).unwrap()
    }

    /// The same vCPU on another machine, moved as the stream's bytes.
    fn hop(&self) -> Self {
        let bytes = postcard::to_allocvec(&self.save()).unwrap();
        let state: VcpuState = postcard::from_bytes(&bytes).unwrap();
        let next = Self::new();
        state.load(&next.vm, &next.vcpu).unwrap();
        next
    }
}

fn one(index: u32, data: u64) -> Msrs {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).unwrap()
}

#[test]
fn write_combining_ranges_and_other_registers_that_the_list_leaves_out_survive_a_hop() {
    if !have_kvm() {
        return;
    }
    let subject = Subject::new();
    // What `echo "base=0xd0000000 size=0x1000000 type=write-combining" >/proc/mtrr` sets, ranges at fixed places, and
    // other registers.
    let values = [
        (0x2ff, 0xc06),
        (0x200, 0xd000_0001),
        (0x201, 0xff_ff00_0800),
        (0x20e, 0xe000_0006),
        (0x20f, 0xff_f000_0800),
        (0x250, 0x0606_0606_0606_0606),
        (0x26f, 0x0505_0505_0505_0505),
        (0x401, 0x1234),
        (0x47f, 0x4321),
        (0x277, 0x0007_0106_0007_0106),
        (0xc000_0103, 7),
    ];
    let held: Vec<_> = values
        .into_iter()
        .filter(|(index, value)| subject.set(*index, *value))
        .collect();
    for (index, _) in values.iter().filter(|value| !held.contains(value)) {
        spec_testing::skipped(format_args!("this KVM does not accept MSR {index:#x}"));
    }
    assert!(held.len() > 3, "too few registers hold a value: {held:x?}");
    let arrived = subject.hop().hop();
    for (index, value) in held {
        assert_eq!(arrived.get(index), Some(value), "MSR {index:#x}");
    }
}

#[test]
fn every_register_of_this_kvm_that_holds_a_value_is_in_its_list_or_in_the_table() {
    if !have_kvm() {
        return;
    }
    let subject = Subject::new();
    let listed = subject.kvm.get_msr_index_list().unwrap();
    let ranges = [
        0..0x2000,
        0x4000_0000..0x4000_0200,
        0x4b56_4d00..0x4b56_4e00,
        0xc000_0000..0xc000_0800,
        0xc001_0000..0xc001_2000,
    ];
    let mut unknown = Vec::new();
    for index in ranges.into_iter().flatten() {
        let Some(was) = subject.get(index) else {
            continue;
        };
        let known = listed.as_slice().contains(&index) || row_of(index).is_some();
        // Some accept only all ones, or a type in their lowest bits.
        let holds = [1, 6, 0x100, u64::MAX]
            .into_iter()
            .any(|value| value != was && subject.set(index, value));
        if holds && !known {
            unknown.push(format!("{index:#x}"));
        }
        subject.set(index, was);
    }
    assert!(
        unknown.is_empty(),
        "neither in KVM's list nor in the table: {unknown:?}"
    );
}

#[test]
fn registers_that_the_table_hides_or_leaves_behind_are_not_carried_as_such() {
    if !have_kvm() {
        return;
    }
    let subject = Subject::new();
    for index in carried_msrs(&subject.kvm).unwrap() {
        let fate = row_of(index).map(|row| row.fate);
        assert!(
            fate.is_none_or(|fate| fate == Fate::Msr),
            "{index:#x}: {fate:?}"
        );
    }
    // Hidden features are really hidden: a guest cannot have guests whose state would be lost.
    let cpuid = subject.vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
    for entry in cpuid.as_slice() {
        let nested = match entry.function {
            1 => entry.ecx & 1 << 5,
            0x8000_0001 => entry.ecx & 1 << 2,
            _ => 0,
        };
        assert_eq!(nested, 0, "CPUID {:#x}", entry.function);
    }
}

#[test]
fn debug_registers_survive_a_hop() {
    if !have_kvm() {
        return;
    }
    let subject = Subject::new();
    let set = kvm_debugregs {
        db: [0x1000, 0x2000, 0x3000, 0x4000],
        dr6: 0xffff_0ff0,
        dr7: 0x455,
        ..Default::default()
    };
    subject.vcpu.set_debug_regs(&set).unwrap();
    let arrived = subject.hop().vcpu.get_debug_regs().unwrap();
    assert_eq!((arrived.db, arrived.dr7), (set.db, set.dr7));
}

#[test]
fn extended_control_registers_survive_a_hop() {
    if !have_kvm() {
        return;
    }
    let subject = Subject::new();
    let mut xcrs = subject.vcpu.get_xcrs().unwrap();
    if xcrs.nr_xcrs == 0 {
        spec_testing::skipped("this KVM's vCPUs have no XCR0");
        return;
    }
    const X87_AND_SSE: u64 = 3;
    xcrs.xcrs[0].value = X87_AND_SSE;
    subject.vcpu.set_xcrs(&xcrs).unwrap();
    let arrived = subject.hop().vcpu.get_xcrs().unwrap();
    assert_eq!(arrived.xcrs[0].value, X87_AND_SSE);
}

#[test]
fn a_deadline_that_has_passed_still_interrupts_after_a_hop() {
    const LVT_TIMER: usize = 0x320;
    const SPURIOUS: usize = 0xf0;
    const DEADLINE_MODE: u32 = 2 << 17 | 0xef;
    if !have_kvm() {
        return;
    }
    let subject = Subject::new();
    if !subject.kvm.check_extension(Cap::TscDeadlineTimer) {
        spec_testing::skipped("this KVM has no TSC deadline timer");
        return;
    }
    let mut lapic = subject.vcpu.get_lapic().unwrap();
    for (at, value) in [(SPURIOUS, 0x1ff_u32), (LVT_TIMER, DEADLINE_MODE)] {
        for (byte, value) in lapic.regs[at..].iter_mut().zip(value.to_le_bytes()) {
            *byte = value.cast_signed();
        }
    }
    subject.vcpu.set_lapic(&lapic).unwrap();
    // Long ago: it has expired. Its interrupt was not delivered, because the guest has not run.
    assert!(subject.set(0x6e0, 1));
    let arrived = subject.hop();
    let deadline = arrived.get(0x6e0);
    let lapic = arrived.vcpu.get_lapic().unwrap();
    // The request register has 32 bits in every 16 bytes.
    let request = lapic.regs[0x200 + 0xef / 32 * 0x10 + 0xef % 32 / 8];
    let pending = request.cast_unsigned() & 1 << (0xef % 8) != 0;
    assert!(
        deadline == Some(1) || pending,
        "the deadline is {deadline:?}, and no interrupt is pending"
    );
}
