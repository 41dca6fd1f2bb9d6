// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a vCPU.

use std::io;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::clock::Reading;
use super::exact::Exact;
use super::{StateError, refused};
use crate::xsave;

/// A timer of the local APIC that fires at a value of the time stamp counter. So the counter must be set first.
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// How much two frequencies may differ: half of what NTP can correct (500 ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Everything that KVM keeps for a vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<Exact<kvm_cpuid_entry2>>,
    tsc_khz: u32,
    tsc: Reading,
    /// The deadline timer, if the vCPU has one; 0 if it is not set.
    tsc_deadline: Option<u64>,
    mp_state: Exact<kvm_mp_state>,
    regs: Exact<kvm_regs>,
    sregs: Exact<kvm_sregs>,
    xsave: Vec<u32>,
    xcrs: Exact<kvm_xcrs>,
    debug_regs: Exact<kvm_debugregs>,
    lapic: Exact<kvm_lapic_state>,
    msrs: Vec<(u32, u64)>,
    events: Exact<kvm_vcpu_events>,
}

impl VcpuState {
    /// Reads the state from KVM. `msr_indices` are the model-specific registers to carry
    /// ([`registers::carried`](super::registers::carried)); those that this vCPU does not have are left out.
    ///
    /// # Errors
    /// [`StateError::Kvm`].
    pub fn save(vm: &VmFd, vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<Self, StateError> {
        // First, because it delivers a pending INIT or SIPI, which changes the rest.
        let mp_state = vcpu.get_mp_state().map_err(refused("run state"))?;
        let cpuid = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("CPUID"))?;
        let area = xsave::read(vm, vcpu);
        // Before the local APIC. If the deadline passes between the two, it is set here and pending there, and interrupts
        // twice. In the other order it would be lost, and a guest that waits for it would never wake.
        let tsc_deadline = read_msrs(vcpu, &[IA32_TSC_DEADLINE])?;
        Ok(Self {
            mp_state: Exact(mp_state),
            cpuid: cpuid.as_slice().iter().copied().map(Exact).collect(),
            tsc_khz: vcpu.get_tsc_khz().map_err(refused("TSC frequency"))?,
            tsc: Reading::of_tsc(vcpu).map_err(refused("time stamp counter"))?,
            tsc_deadline: tsc_deadline.first().map(|(_, deadline)| *deadline),
            regs: Exact(vcpu.get_regs().map_err(refused("registers"))?),
            sregs: Exact(vcpu.get_sregs().map_err(refused("special registers"))?),
            xsave: area.map_err(|source| kvm_error("XSAVE area", source))?,
            xcrs: Exact(vcpu.get_xcrs().map_err(refused("XCRs"))?),
            debug_regs: Exact(vcpu.get_debug_regs().map_err(refused("debug registers"))?),
            lapic: Exact(vcpu.get_lapic().map_err(refused("local APIC"))?),
            msrs: read_msrs(vcpu, msr_indices)?,
            // Last, because reading the others may change pending events.
            events: Exact(vcpu.get_vcpu_events().map_err(refused("events"))?),
        })
    }

    /// Gives the state to a vCPU that has not run.
    ///
    /// # Errors
    /// [`StateError`] if processor or KVM cannot take it.
    pub fn load(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), StateError> {
        set_cpuid(vcpu, &self.cpuid())?;
        fit_tsc_frequency(vcpu, self.tsc_khz)?;
        self.tsc
            .set_tsc(vcpu, self.tsc_khz)
            .map_err(refused("time stamp counter"))?;
        vcpu.set_mp_state(self.mp_state.0)
            .map_err(refused("run state"))?;
        vcpu.set_regs(&self.regs.0).map_err(refused("registers"))?;
        // Before the local APIC, because they have its base address.
        vcpu.set_sregs(&self.sregs.0)
            .map_err(refused("special registers"))?;
        xsave::write(vm, vcpu, &self.xsave).map_err(|source| kvm_error("XSAVE area", source))?;
        vcpu.set_xcrs(&self.xcrs.0).map_err(refused("XCRs"))?;
        vcpu.set_debug_regs(&self.debug_regs.0)
            .map_err(refused("debug registers"))?;
        vcpu.set_lapic(&self.lapic.0)
            .map_err(refused("local APIC"))?;
        write_msrs(vcpu, &self.msrs)?;
        // After the counter, and the local APIC whose timer it sets.
        let deadline = self.tsc_deadline.map(|value| (IA32_TSC_DEADLINE, value));
        write_msrs(vcpu, deadline.as_slice())?;
        // Last, because setting the others may raise events.
        vcpu.set_vcpu_events(&self.events.0)
            .map_err(refused("events"))
    }

    /// The guest's CPUID.
    pub fn cpuid(&self) -> Vec<kvm_cpuid_entry2> {
        self.cpuid.iter().map(|entry| entry.0).collect()
    }
}

/// Sets the frequency of `vcpu`'s time stamp counter to `wanted` kHz, or close enough to it.
///
/// # Errors
/// [`StateError::TscFrequency`] if it cannot be scaled.
pub fn fit_tsc_frequency(vcpu: &VcpuFd, wanted: u32) -> Result<(), StateError> {
    let found = vcpu.get_tsc_khz().map_err(refused("TSC frequency"))?;
    let apart = u64::from(found.abs_diff(wanted)) * 1_000_000;
    let close = apart <= u64::from(wanted) * TSC_TOLERANCE_PPM;
    if close || vcpu.set_tsc_khz(wanted).is_ok() {
        Ok(())
    } else {
        Err(StateError::TscFrequency { wanted, found })
    }
}

/// Gives `vcpu` this CPUID.
///
/// # Errors
/// [`StateError::Kvm`].
pub fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), StateError> {
    let cpuid = CpuId::from_entries(entries)
        .map_err(|error| kvm_error("CPUID", io::Error::other(format!("{error:?}"))))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("CPUID"))
}

/// The most registers of one call. The kernel accepts fewer than `KVM_MAX_MSR_ENTRIES`.
const MOST_MSRS: usize = KVM_MAX_MSR_ENTRIES - 1;

/// Reads the model-specific registers `indices`; those that this vCPU does not have are left out.
///
/// # Errors
/// [`StateError::Kvm`].
pub fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let entries = left.iter().take(MOST_MSRS).map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        });
        let mut msrs = msr_list(&entries.collect::<Vec<_>>())?;
        let read = vcpu
            .get_msrs(&mut msrs)
            .map_err(refused("model-specific registers"))?;
        values.extend(
            msrs.as_slice()
                .iter()
                .take(read)
                .map(|msr| (msr.index, msr.data)),
        );
        // KVM stops at a register that this vCPU does not have.
        let stopped = usize::from(read < msrs.as_slice().len());
        left = &left[read + stopped..];
    }
    Ok(values)
}

/// Writes the registers. It is not an error if a register cannot be written and has the value already.
fn write_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), StateError> {
    let mut left = values;
    while !left.is_empty() {
        let entries = left
            .iter()
            .take(MOST_MSRS)
            .map(|(index, data)| kvm_msr_entry {
                index: *index,
                data: *data,
                ..Default::default()
            });
        let msrs = msr_list(&entries.collect::<Vec<_>>())?;
        let written = vcpu
            .set_msrs(&msrs)
            .map_err(refused("model-specific registers"))?;
        left = &left[written..];
        if written == msrs.as_slice().len() {
            continue;
        }
        let [(index, wanted), rest @ ..] = left else {
            break;
        };
        if read_msrs(vcpu, &[*index])? != [(*index, *wanted)] {
            return Err(StateError::Msr {
                index: *index,
                wanted: *wanted,
            });
        }
        left = rest;
    }
    Ok(())
}

fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(entries).map_err(|error| {
        kvm_error(
            "model-specific registers",
            io::Error::other(format!("{error:?}")),
        )
    })
}

fn kvm_error(part: &'static str, source: io::Error) -> StateError {
    StateError::Kvm { part, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    #[test]
    fn more_registers_than_the_kernel_takes_at_once_are_read_and_written() {
        const TSC_AUX: u32 = 0xc000_0103;
        const SYSENTER_CS: u32 = 0x174;
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                spec_testing::skipped(format_args!("there is no KVM here: {error}"));
                return;
            }
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let indices: Vec<u32> = [SYSENTER_CS].repeat(3 * KVM_MAX_MSR_ENTRIES);
        let values = read_msrs(&vcpu, &indices).unwrap();
        assert_eq!(values.len(), indices.len());
        write_msrs(&vcpu, &values).unwrap();
        // In the middle, a register that this vCPU may lack.
        let lacking = [&indices[..300], &[TSC_AUX, 0xdead_beef], &indices[..300]].concat();
        assert!(read_msrs(&vcpu, &lacking).unwrap().len() >= 600);
    }
}
