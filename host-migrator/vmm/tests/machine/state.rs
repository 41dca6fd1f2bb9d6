// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest goes on where it was on another machine. Damaged states are refused.

use host_migrator::{DestinationMachine, SourceMachine};
use proptest::prelude::*;
use reference_vmm::GuestKind;
use reference_vmm::state::{MachineState, Shape, StateError, VERSION};
use reference_vmm::versioned::FormatError;

use crate::guests::{MAILBOX, Subject, config, copy_memory, counter, have_kvm, incoming, program};

fn paused_counter() -> (Subject, Vec<u8>) {
    let mut subject = program(16 << 20, &counter());
    subject.machine.start().unwrap();
    subject.wait("the guest to count", |subject| subject.word(MAILBOX) > 1000);
    subject.stop();
    let state = subject.machine.save().unwrap();
    (subject, state)
}

#[test]
fn a_guest_goes_on_where_it_was_from_machine_to_machine() {
    if !have_kvm() {
        return;
    }
    let (mut subject, mut state) = paused_counter();
    let mut said: Vec<u8> = Vec::new();
    for _ in 0..5 {
        let mut next = incoming(&config(16 << 20, 1));
        copy_memory(subject.machine.ram(), next.machine.ram());
        next.machine.load(&state).unwrap();
        subject.machine.hand_over();
        said.extend(subject.console.try_iter());
        let count = subject.word(MAILBOX);
        next.machine.run().unwrap();
        next.wait("the guest to go on", |next| {
            next.word(MAILBOX) > count + 1000
        });
        next.stop();
        state = next.machine.save().unwrap();
        subject = next;
    }
    said.extend(subject.console.try_iter());
    assert!(said.len() > 5000);
    for (index, byte) in said.iter().enumerate() {
        assert_eq!(*byte, (index + 1) as u8, "output {index}");
    }
}

#[test]
fn a_state_that_does_not_fit_the_machine_is_refused_by_name() {
    if !have_kvm() {
        return;
    }
    let (subject, state) = paused_counter();
    let state = MachineState::from_bytes(&state).unwrap();
    let ram = subject.machine.ram();
    let shape = Shape {
        guest: GuestKind::Bare,
        ram,
        vcpus: 1,
        balloon: false,
        agent_port: false,
    };
    state.check(&shape).unwrap();
    let guest = state.check(&Shape {
        guest: GuestKind::Linux,
        ..shape
    });
    assert_eq!(
        guest.unwrap_err().to_string(),
        "the state is that of a bare guest, but this machine awaits a Linux one"
    );
    let vcpus = state.check(&Shape { vcpus: 2, ..shape });
    assert!(matches!(
        vcpus,
        Err(StateError::Vcpus {
            found: 1,
            expected: 2
        })
    ));
    let balloon = state.check(&Shape {
        balloon: true,
        ..shape
    });
    assert_eq!(
        balloon.unwrap_err().to_string(),
        "the state is that of a machine without a balloon, but this machine is not"
    );
    let port = state.check(&Shape {
        agent_port: true,
        ..shape
    });
    assert!(matches!(port, Err(StateError::Device { has: false, .. })));
    let other = program(32 << 20, &counter());
    let other = state.check(&Shape {
        ram: other.machine.ram(),
        ..shape
    });
    assert!(matches!(other, Err(StateError::Memory)));
}

#[test]
fn a_state_that_was_cut_off_at_any_byte_is_refused() {
    if !have_kvm() {
        return;
    }
    let (_, state) = paused_counter();
    for len in 0..state.len() {
        assert!(
            MachineState::from_bytes(&state[..len]).is_err(),
            "{len} bytes"
        );
    }
    let mut longer = state.clone();
    longer.push(0);
    assert!(matches!(
        MachineState::from_bytes(&longer),
        Err(StateError::Format(FormatError::Trailing { bytes: 1, .. }))
    ));
    let mut newer = state;
    newer[8] = VERSION as u8 + 1;
    assert!(matches!(
        MachineState::from_bytes(&newer),
        Err(StateError::Format(FormatError::Version { found, .. })) if found == VERSION + 1
    ));
}

#[test]
fn a_damaged_state_is_loaded_or_refused_and_never_brings_the_vmm_down() {
    if !have_kvm() {
        return;
    }
    let (_, state) = paused_counter();
    let mut random = spec::stamp::Random::new(1);
    for _ in 0..100 {
        let mut damaged = state.clone();
        for _ in 0..1 + random.below(8) {
            let at = random.below(damaged.len() as u64) as usize;
            damaged[at] = random.next() as u8;
        }
        let mut machine = incoming(&config(16 << 20, 1)).machine;
        if machine.load(&damaged).is_ok() {
            // Whatever the guest does now, the VMM must go on.
            machine.run().unwrap();
            // A guest that has ended by then cannot be paused.
            let _ = machine.stop_vcpus();
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_are_refused_as_a_state(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(MachineState::from_bytes(&bytes).is_err());
        let mut with_header = [b"LACUNAVM", &VERSION.to_le_bytes()[..]].concat();
        with_header.extend(&bytes);
        // Always shorter than a whole state.
        prop_assert!(MachineState::from_bytes(&with_header).is_err());
    }
}
