// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's CPUID: what this KVM supports and a migration can carry, with one core for each vCPU.

mod features;
mod lacking;
mod register;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

pub use lacking::lacking;
use register::{Register, Word};

/// Feature information; ECX bit 24: TSC deadline timer, bit 31: there is a hypervisor.
const FEATURES: u32 = 1;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Topology, and the same with more levels.
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;
/// AMD's topology.
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Features that KVM may support and that no guest gets, because a migration does not carry their state.
const HIDDEN: [(Word, u32); 6] = [
    // VMX and SVM: the state of nested guests (KVM_GET_NESTED_STATE) is not carried.
    (Word::new(FEATURES, 0, Register::Ecx), 1 << 5),
    (Word::new(0x8000_0001, 0, Register::Ecx), 1 << 2),
    // SGX and its launch control: an enclave's memory is bound to its processor.
    (Word::new(7, 0, Register::Ebx), 1 << 2),
    (Word::new(7, 0, Register::Ecx), 1 << 30),
    // Shadow stacks: no structure that is carried has their pointer (KVM_REG_GUEST_SSP).
    (Word::new(7, 0, Register::Ecx), 1 << 7),
    (Word::new(7, 1, Register::Edx), 1 << 18),
];
/// Leaves that only describe hidden features: SGX, SVM, encrypted memory.
const HIDDEN_LEAVES: [u32; 3] = [0x12, 0x8000_000a, 0x8000_001f];

/// CPUID as all vCPUs of a machine may see it. [`for_vcpu`] makes the CPUID of one vCPU from it.
///
/// # Errors
/// KVM's.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == FEATURES {
            entry.ecx |= HYPERVISOR;
            if deadline_timer {
                entry.ecx |= TSC_DEADLINE;
            }
        }
    }
    hide(cpuid.as_mut_slice());
    Ok(cpuid)
}

/// The CPUID that a guest on `vcpu`, which has not run, sees if it is given `supported`. A software KVM cannot intercept
/// the instruction, so its guests see more than it reports as supported; this returns what they really see.
///
/// # Errors
/// KVM's.
pub fn seen_on(vcpu: &VcpuFd, supported: &CpuId) -> Result<CpuId, kvm_ioctls::Error> {
    vcpu.set_cpuid2(supported)?;
    vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES)
}

/// Removes features that do not migrate.
fn hide(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
        for (word, bits) in HIDDEN {
            if word.is_in(entry) {
                *word.register.of_mut(entry) &= !bits;
            }
        }
        if HIDDEN_LEAVES.contains(&entry.function) {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
    }
}

/// The CPUID of vCPU `number` of `count`.
///
/// # Errors
/// KVM's, if the entries are too many.
pub fn for_vcpu(supported: &CpuId, number: u32, count: u32) -> Result<CpuId, kvm_ioctls::Error> {
    // The host's topology is not the guest's.
    let host_topology = |function| function == TOPOLOGY || function == TOPOLOGY_V2;
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !host_topology(entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            // Initial APIC id, and logical processors.
            FEATURES => entry.ebx = entry.ebx & 0xffff | count << 16 | number << 24,
            AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (number, number, 0),
            _ => {}
        }
    }
    let had_topology = supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == TOPOLOGY);
    if had_topology {
        let core_bits = count.next_power_of_two().trailing_zeros();
        let levels = [
            (0, 1, LEVEL_THREAD),
            (core_bits, count, LEVEL_CORE),
            (0, 0, 0),
        ];
        entries.extend(
            (0..)
                .zip(levels)
                .map(|(index, (shift, processors, level))| kvm_cpuid_entry2 {
                    function: TOPOLOGY,
                    index,
                    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax: shift,
                    ebx: processors,
                    ecx: level << 8 | index,
                    edx: number,
                    ..Default::default()
                }),
        );
    }
    CpuId::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_sees_a_feature_whose_state_does_not_migrate() {
        let all = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let mut entries = [
            all(1, 0),
            all(7, 0),
            all(7, 1),
            all(0x8000_0001, 0),
            all(0x8000_000a, 0),
        ];
        hide(&mut entries);
        let [basic, structured, more, extended, svm] = entries;
        assert_eq!(basic.ecx, !(1 << 5), "VMX, and nothing else");
        assert_eq!(structured.ebx, !(1 << 2), "SGX");
        assert_eq!(structured.ecx, !(1 << 7 | 1 << 30), "shadow stacks, SGX");
        assert_eq!(more.edx, !(1 << 18), "shadow stacks of supervisors");
        assert_eq!(extended.ecx, !(1 << 2), "SVM, and nothing else");
        assert_eq!((svm.eax, svm.edx), (0, 0), "what SVM has");
    }

    #[test]
    fn this_host_offers_no_nested_virtualization() {
        let Ok(kvm) = Kvm::new() else {
            spec_testing::skipped("/dev/kvm cannot be opened");
            return;
        };
        for entry in supported(&kvm).unwrap().as_slice() {
            match entry.function {
                1 => assert_eq!(entry.ecx & 1 << 5, 0),
                0x8000_0001 => assert_eq!(entry.ecx & 1 << 2, 0),
                0x8000_000a => assert_eq!(entry.edx, 0),
                _ => {}
            }
        }
    }
}
