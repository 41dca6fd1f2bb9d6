// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest needs of its machine. It is sent before the guest's memory, and the destination compares it with its machine.
//!
//! ```text
//! byte 0   magic "LACUNAMD"   8   version, u32 little-endian   12  MachineDescription, in postcard's format
//! ```

mod host;

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

pub use host::{Host, Trial};

use crate::state::vcpu::read_msrs;
use crate::state::{Exact, GuestKind, StateError, refused, registers, sections};
use crate::versioned::{Format, FormatError};
use crate::xsave;

/// The version of the format. A reader accepts no other.
pub const VERSION: u32 = 2;
const FORMAT: Format = Format {
    what: "the description of a machine",
    magic: *b"LACUNAMD",
    version: VERSION,
};
/// KVM capabilities that the parts of a vCPU's state need.
const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::KvmclockCtrl, "KVM_CAP_KVMCLOCK_CTRL"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];
/// IA32_ARCH_CAPABILITIES: which known flaws of processors this one does not have.
const ARCH_CAPABILITIES: u32 = 0x10a;

/// What a guest needs of its machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineDescription {
    /// Names and versions of the sections of the state that may follow the memory ([`crate::state`]).
    pub sections: Vec<(String, u32)>,
    /// What runs.
    pub guest: GuestKind,
    /// vCPUs.
    pub vcpus: u32,
    /// The devices besides the console.
    pub devices: Vec<DeviceDescription>,
    /// The CPUID of vCPU 0. That of the others differs only in the fields with their numbers.
    pub cpuid: Vec<Exact<kvm_cpuid_entry2>>,
    /// Ticks of the time stamp counter in a millisecond.
    pub tsc_khz: u32,
    /// The model-specific registers that the state will carry.
    pub msrs: Vec<u32>,
    /// Bits of IA32_ARCH_CAPABILITIES as the guest sees them; 0 if it has no such register.
    pub arch_capabilities: u64,
    /// Bytes of the XSAVE area.
    pub xsave_bytes: u64,
    /// Names of the KVM capabilities that the state was saved with.
    pub capabilities: Vec<String>,
}

/// A device of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// Its name, such as "balloon".
    pub name: String,
    /// The features that the guest's driver uses; none before it has come up.
    pub features: u64,
}

impl MachineDescription {
    /// Describes the machine of `vcpu`, which is its first vCPU and does not run. The caller adds the devices, because the
    /// features that their drivers use may change while the guest runs.
    ///
    /// # Errors
    /// [`StateError::Kvm`] if KVM refuses something.
    pub fn of(
        kvm: &Kvm,
        vm: &VmFd,
        vcpu: &VcpuFd,
        guest: GuestKind,
        vcpus: usize,
    ) -> Result<Self, StateError> {
        let cpuid = vcpu
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("CPUID"))?;
        let msrs = read_msrs(vcpu, &carried_msrs(kvm)?)?;
        let arch_capabilities = msrs.iter().find(|(index, _)| *index == ARCH_CAPABILITIES);
        let capable = CAPABILITIES
            .iter()
            .filter(|(cap, _)| vm.check_extension(*cap));
        Ok(Self {
            sections: sections(),
            guest,
            vcpus: vcpus as u32,
            devices: Vec::new(),
            cpuid: cpuid.as_slice().iter().copied().map(Exact).collect(),
            tsc_khz: vcpu.get_tsc_khz().map_err(refused("TSC frequency"))?,
            arch_capabilities: arch_capabilities.map_or(0, |(_, value)| *value),
            msrs: msrs.iter().map(|(index, _)| *index).collect(),
            xsave_bytes: xsave::bytes(vm) as u64,
            capabilities: capable.map(|(_, name)| (*name).to_owned()).collect(),
        })
    }

    /// The description as bytes.
    ///
    /// # Errors
    /// [`FormatError::Damaged`] if it cannot be written in postcard's format. No known description causes this.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        FORMAT.write(self)
    }

    /// Reads the bytes of [`MachineDescription::to_bytes`].
    ///
    /// # Errors
    /// [`FormatError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        FORMAT.read(bytes)
    }
}

/// The model-specific registers that a state of this KVM carries. A vCPU need not have all of them.
///
/// # Errors
/// [`StateError::Kvm`].
pub fn carried_msrs(kvm: &Kvm) -> Result<Vec<u32>, StateError> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(refused("list of model-specific registers"))?;
    Ok(registers::carried(listed.as_slice()))
}

/// The differences, each with its name. A long list is cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences(pub Vec<String>);

impl Differences {
    /// How many differences are shown at most.
    pub const NAMED: usize = 16;
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = &self.0[..self.0.len().min(Self::NAMED)];
        f.write_str(&named.join("; "))?;
        match self.0.len() - named.len() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_differences_is_cut_and_counted() {
        let list = |count: usize| Differences((0..count).map(|n| n.to_string()).collect());
        assert_eq!(list(2).to_string(), "0; 1");
        assert!(list(16).to_string().ends_with("; 15"));
        assert!(list(40).to_string().ends_with("; 15; and 24 more"));
    }
}
