// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a waiting machine and its host have, and which of a guest's needs they lack.

use std::fmt::Display;
use std::thread;

use kvm_bindings::{Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{
    ARCH_CAPABILITIES, CAPABILITIES, DeviceDescription, Differences, MachineDescription, sections,
};
use crate::cpuid;
use crate::state::vcpu::{fit_tsc_frequency, read_msrs, set_cpuid};
use crate::state::{GuestKind, StateError, refused, registers};
use crate::xsave;

/// A machine that waits for a guest, and its host.
#[derive(Debug)]
pub struct Host<'a> {
    /// The kind of guest that it awaits.
    pub guest: GuestKind,
    /// vCPUs.
    pub vcpus: usize,
    /// Its devices, with all the features that they offer.
    pub devices: Vec<DeviceDescription>,
    /// The CPUID that guests see here ([`cpuid::seen_on`]).
    pub cpuid: &'a [kvm_cpuid_entry2],
    /// The host.
    pub kvm: &'a Kvm,
    /// The machine on which the guest's vCPU is tried.
    pub trial: &'a Trial,
}

/// A machine that is only for trials, because the waiting machine must not change. It is made in advance, because the
/// source measures how long the answer to its description takes.
#[derive(Debug)]
pub struct Trial {
    vcpu: VcpuFd,
    vm: VmFd,
}

impl Trial {
    /// A trial machine on `vm`, which has interrupt controllers and no vCPU.
    ///
    /// # Errors
    /// KVM's.
    pub fn on(vm: VmFd) -> Result<Self, kvm_ioctls::Error> {
        let vcpu = vm.create_vcpu(0)?;
        Ok(Self { vcpu, vm })
    }

    /// Takes the machine down in a thread of its own: KVM takes ten milliseconds or more for that, and the guest that was judged
    /// is stopped by now.
    pub fn end(self) {
        let thread = thread::Builder::new().name("trial-end".into());
        // Without a thread it is taken down here.
        let _ = thread.spawn(move || drop(self));
    }
}

/// Bits of IA32_ARCH_CAPABILITIES that a guest does not rely on: they say that the processor has a flaw, or are for
/// hypervisors.
const NO_PROMISE: u64 = 1 << 2 | 1 << 3 | 1 << 19;
/// The other bits that have a name.
const PROMISES: [(u32, &str); 17] = [
    (0, "rdcl_no"),
    (1, "ibrs_all"),
    (4, "ssb_no"),
    (5, "mds_no"),
    (6, "pschange_mc_no"),
    (7, "tsx_ctrl"),
    (8, "taa_no"),
    (13, "sbdr_ssdp_no"),
    (14, "fbsdp_no"),
    (15, "psdp_no"),
    (17, "fb_clear"),
    (20, "bhi_no"),
    (24, "pbrsb_no"),
    (26, "gds_no"),
    (27, "rfds_no"),
    (28, "rfds_clear"),
    (62, "its_no"),
];

impl Host<'_> {
    /// Names everything that the guest of `description` has and that is missing or different here.
    ///
    /// # Errors
    /// [`StateError::Kvm`] if KVM cannot be asked.
    pub fn differences(&self, description: &MachineDescription) -> Result<Differences, StateError> {
        let mut found = Vec::new();
        let mut compare = |what: &str, theirs: &dyn Display, ours: &dyn Display| {
            let (theirs, ours) = (theirs.to_string(), ours.to_string());
            if theirs != ours {
                found.push(format!("{what}: {theirs} there, {ours} here"));
            }
        };
        compare("kind of guest", &description.guest, &self.guest);
        compare("vCPUs", &description.vcpus, &self.vcpus);
        let ours = sections();
        for (name, theirs) in &description.sections {
            let ours = ours.iter().find(|(known, _)| known == name);
            let ours = ours.map_or_else(|| "none".into(), |(_, version)| version.to_string());
            compare(
                &format!("version of section {name:?} of the state"),
                theirs,
                &ours,
            );
        }
        let xsave = xsave::bytes(&self.trial.vm);
        compare("bytes of XSAVE area", &description.xsave_bytes, &xsave);
        found.extend(self.devices(&description.devices));
        let theirs: Vec<_> = description.cpuid.iter().map(|entry| entry.0).collect();
        let mut lacks = cpuid::lacking(&theirs, self.cpuid);
        lacks.extend(self.capabilities(&description.capabilities));
        lacks.extend(self.arch_capabilities(description.arch_capabilities)?);
        lacks.extend(self.try_vcpu(description, &theirs)?);
        let lacks = lacks
            .iter()
            .map(|what| format!("the guest has {what}, this host does not"));
        found.extend(lacks);
        Ok(Differences(found))
    }

    fn devices(&self, theirs: &[DeviceDescription]) -> Vec<String> {
        let mut found = Vec::new();
        for device in theirs {
            // The name comes from the stream and may be shown on a terminal.
            let name = device.name.escape_debug();
            match self.devices.iter().find(|ours| ours.name == device.name) {
                None => found.push(format!("{name}: there is one there, none here")),
                Some(ours) if device.features & !ours.features != 0 => found.push(format!(
                    "{name}: the guest uses its features {:#x}, which this one does not offer",
                    device.features & !ours.features
                )),
                Some(_) => {}
            }
        }
        for ours in &self.devices {
            if !theirs.iter().any(|device| device.name == ours.name) {
                found.push(format!("{}: there is none there, one here", ours.name));
            }
        }
        found
    }

    fn capabilities(&self, theirs: &[String]) -> Vec<String> {
        let here = |name: &String| {
            let known = CAPABILITIES.iter().find(|(_, known)| known == name);
            known.is_some_and(|(cap, _)| self.trial.vm.check_extension(*cap))
        };
        let missing = theirs.iter().filter(|name| !here(name));
        missing
            .map(|name| name.escape_debug().to_string())
            .collect()
    }

    fn arch_capabilities(&self, theirs: u64) -> Result<Vec<String>, StateError> {
        let promised = theirs & !NO_PROMISE;
        if promised == 0 {
            return Ok(Vec::new());
        }
        let entry = kvm_msr_entry {
            index: ARCH_CAPABILITIES,
            ..Default::default()
        };
        let action = "feature registers";
        let mut msrs = Msrs::from_entries(&[entry])
            .map_err(|_| refused(action)(kvm_ioctls::Error::new(libc::E2BIG)))?;
        let read = self.kvm.get_msrs(&mut msrs).map_err(refused(action))?;
        let ours = msrs.as_slice().iter().take(read).map(|msr| msr.data);
        let missing = promised & !ours.sum::<u64>();
        let bits = (0..u64::BITS).filter(|bit| missing & 1 << bit != 0);
        Ok(bits
            .map(|bit| {
                let place = format!("MSR {ARCH_CAPABILITIES:#x} bit {bit}");
                let named = PROMISES.iter().find(|(number, _)| *number == bit);
                named.map_or(place.clone(), |(_, name)| format!("{name} ({place})"))
            })
            .collect())
    }

    /// Names what a vCPU with the guest's CPUID cannot do here.
    fn try_vcpu(
        &self,
        description: &MachineDescription,
        cpuid: &[kvm_cpuid_entry2],
    ) -> Result<Vec<String>, StateError> {
        let vcpu = &self.trial.vcpu;
        if let Err(error) = set_cpuid(vcpu, cpuid) {
            return Ok(vec![format!("a CPUID that KVM takes there ({error})")]);
        }
        let mut lacks = Vec::new();
        if let Err(StateError::TscFrequency { wanted, found }) =
            fit_tsc_frequency(vcpu, description.tsc_khz)
        {
            lacks.push(format!(
                "a time stamp counter of {wanted} kHz (this one runs at {found} kHz and cannot be scaled)"
            ));
        }
        let here = read_msrs(vcpu, &description.msrs)?;
        let missing = description
            .msrs
            .iter()
            .filter(|index| !here.iter().any(|(here, _)| here == *index));
        lacks.extend(missing.map(|index| registers::name(*index)));
        Ok(lacks)
    }
}
