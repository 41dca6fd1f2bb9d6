// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine that lacks something that a guest needs refuses it before its memory arrives, and names everything that is
//! missing.

use host_migrator::{DestinationMachine, SourceMachine};
use reference_vmm::GuestKind;
use reference_vmm::description::{DeviceDescription, MachineDescription, VERSION};
use reference_vmm::state::MachineState;

use crate::guests::{Subject, config, counter, have_kvm, incoming, program};
use crate::state::altered;

const MEMORY: u64 = 16 << 20;

fn described() -> (Subject, MachineDescription) {
    let mut subject = program(MEMORY, &counter());
    let bytes = subject.machine.describe().unwrap();
    (subject, MachineDescription::from_bytes(&bytes).unwrap())
}

/// The objection of a machine with one vCPU to `description`.
fn refusal(description: &MachineDescription) -> String {
    let mut machine = incoming(&config(MEMORY, 1)).machine;
    let bytes = description.to_bytes().unwrap();
    machine.judge(&bytes).unwrap_err().to_string()
}

/// `description` with bits of a CPUID leaf set: leaf, subleaf, EBX, ECX.
fn with_features(
    description: &MachineDescription,
    (leaf, subleaf): (u32, u32),
    [ebx, ecx]: [u32; 2],
) -> MachineDescription {
    let mut description = description.clone();
    let entries = description.cpuid.iter_mut();
    let entry = entries
        .map(|entry| &mut entry.0)
        .find(|entry| (entry.function, entry.index) == (leaf, subleaf))
        .unwrap();
    entry.ebx |= ebx;
    entry.ecx |= ecx;
    description
}

#[test]
fn a_guest_fits_a_machine_like_its_own_and_can_be_described_while_it_runs() {
    if !have_kvm() {
        return;
    }
    let mut subject = program(MEMORY, &counter());
    subject.machine.start().unwrap();
    let description = subject.machine.describe().unwrap();
    let mut next = incoming(&config(MEMORY, 1));
    next.machine.judge(&description).unwrap();
    // A guest that has arrived is described like one that was started.
    subject.stop();
    let mut state = subject.machine.save().unwrap();
    next.machine.load(&mut state).unwrap();
    assert_eq!(next.machine.describe().unwrap(), description);
    assert!(
        next.machine.judge(&description).is_err(),
        "a machine with a guest accepts no other"
    );
}

#[test]
fn a_refusal_names_the_features_that_the_processor_lacks() {
    if !have_kvm() {
        return;
    }
    let (_, description) = described();
    // No host has all of these: AVX512PF ended with Xeon Phi, and no guest gets VMX.
    let other = with_features(&description, (7, 0), [1 << 26, 0]);
    let other = with_features(&other, (1, 0), [0, 1 << 5]);
    let refusal = refusal(&other);
    for name in ["avx512pf (CPUID 7.0:EBX bit 26)", "vmx (CPUID 1:ECX bit 5)"] {
        assert!(refusal.contains(name), "{refusal}");
    }
}

#[test]
fn a_state_with_another_processor_than_described_is_refused() {
    if !have_kvm() {
        return;
    }
    let (mut subject, description) = described();
    subject.stop();
    let mut state = subject.machine.save().unwrap();
    // The entry of leaf 7, byte for byte, in the state.
    let leaf = |description: &MachineDescription| {
        let mut entries = description.cpuid.iter();
        let entry = entries
            .find(|entry| (entry.0.function, entry.0.index) == (7, 0))
            .unwrap();
        postcard::to_allocvec(entry).unwrap()
    };
    let honest = leaf(&description);
    let forged = leaf(&with_features(&description, (7, 0), [1 << 26, 0]));
    let mut other = altered(&state, "vcpus", |section| {
        let mut windows = section.bytes.windows(honest.len());
        let at = windows.position(|window| window == honest).unwrap();
        section.bytes[at..at + forged.len()].copy_from_slice(&forged);
    });
    MachineState::take_from(&mut other.clone()).unwrap();
    let mut machine = incoming(&config(MEMORY, 1)).machine;
    let error = machine.load(&mut other).unwrap_err().to_string();
    assert!(error.contains("avx512pf"), "{error}");
    machine.load(&mut state).unwrap();
}

#[test]
fn a_machine_of_another_shape_is_refused_with_all_differences() {
    if !have_kvm() {
        return;
    }
    let (_, description) = described();
    let other = MachineDescription {
        sections: vec![("vcpus".into(), 9), ("graphics".into(), 1)],
        guest: GuestKind::Linux,
        vcpus: 3,
        devices: vec![DeviceDescription {
            name: "balloon".into(),
            features: 0,
        }],
        msrs: vec![0x1234_5678],
        xsave_bytes: description.xsave_bytes + 64,
        capabilities: vec!["KVM_CAP_OF_TOMORROW".into()],
        ..description
    };
    let refusal = refusal(&other);
    for difference in [
        "kind of guest: Linux there, bare here",
        "vCPUs: 3 there, 1 here",
        "version of section \"vcpus\" of the state: 9 there, 1 here",
        "version of section \"graphics\" of the state: 1 there, none here",
        "bytes of XSAVE area",
        "balloon: there is one there, none here",
        "MSR 0x12345678",
        "KVM_CAP_OF_TOMORROW",
    ] {
        assert!(refusal.contains(difference), "{difference}: {refusal}");
    }
}

#[test]
fn a_long_list_of_differences_is_cut_and_a_refusal_changes_nothing() {
    if !have_kvm() {
        return;
    }
    let (mut subject, description) = described();
    let other = MachineDescription {
        msrs: (0x1234_0000..0x1234_0032).collect(),
        ..description.clone()
    };
    let mut machine = incoming(&config(MEMORY, 1)).machine;
    let error = machine.judge(&other.to_bytes().unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("; and 34 more"), "{error}");
    // The next source's guest fits, and arrives.
    machine.judge(&description.to_bytes().unwrap()).unwrap();
    subject.stop();
    machine.load(&mut subject.machine.save().unwrap()).unwrap();
}

#[test]
fn invalid_descriptions_are_refused() {
    if !have_kvm() {
        return;
    }
    let (_, description) = described();
    let good = description.to_bytes().unwrap();
    let mut machine = incoming(&config(MEMORY, 1)).machine;
    for len in 0..good.len() {
        assert!(machine.judge(&good[..len]).is_err(), "{len} bytes");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(machine.judge(&longer).is_err());
    let mut newer = good.clone();
    newer[8] = VERSION as u8 + 1;
    let error = machine.judge(&newer).unwrap_err().to_string();
    assert!(error.contains("version 2"), "{error}");
    let mut random = spec::stamp::Random::new(3);
    for _ in 0..200 {
        let mut damaged = good.clone();
        let at = 12 + random.below(damaged.len() as u64 - 12) as usize;
        damaged[at] = random.next() as u8;
        // Whether it is refused or not, it is only compared.
        let _ = machine.judge(&damaged);
    }
    machine.judge(&good).unwrap();
}
