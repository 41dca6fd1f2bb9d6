// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest's CPUID instruction says: all that this KVM supports, and one core for each vCPU.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

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

/// CPUID as all vCPUs of a machine may see it; [`for_vcpu`] makes it that of one.
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
    Ok(cpuid)
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
