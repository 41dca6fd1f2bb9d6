// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest goes on where it was on another machine. Damaged states are refused.

use host_migrator::{DestinationMachine, MachineState as Sections, SourceMachine, StateSection};
use proptest::prelude::*;
use reference_vmm::GuestKind;
use reference_vmm::state::{MachineState, Shape, StateError};
use reference_vmm::versioned::FormatError;

use crate::guests::{MAILBOX, Subject, config, copy_memory, counter, have_kvm, incoming, program};

/// `state` with what `alter` makes of section `name`.
pub fn altered(state: &Sections, name: &str, alter: impl Fn(&mut StateSection)) -> Sections {
    let mut other = Sections::default();
    for section in state.sections() {
        let mut section = section.clone();
        if section.name == name {
            alter(&mut section);
        }
        let StateSection {
            name,
            version,
            bytes,
            ..
        } = section;
        other.add(name, version, bytes).unwrap();
    }
    other
}

fn read(state: &Sections) -> Result<MachineState, StateError> {
    MachineState::take_from(&mut state.clone())
}

fn names(state: &Sections) -> Vec<String> {
    let names = state.sections().iter().map(|section| section.name.clone());
    names.collect()
}

fn paused_counter() -> (Subject, Sections) {
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
        next.machine.load(&mut state).unwrap();
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
    let state = read(&state).unwrap();
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
fn a_section_that_is_cut_off_missing_or_of_another_version_is_refused_by_name() {
    if !have_kvm() {
        return;
    }
    let (_, state) = paused_counter();
    assert_eq!(
        names(&state),
        ["machine", "vcpus", "platform", "serial-console"]
    );
    for section in state.sections() {
        let name = section.name.as_str();
        for len in 0..section.bytes.len() {
            let short = altered(&state, name, |section| section.bytes.truncate(len));
            assert!(read(&short).is_err(), "{len} bytes of {name}");
        }
        let longer = altered(&state, name, |section| section.bytes.push(0));
        assert!(matches!(
            read(&longer),
            Err(StateError::Format(FormatError::Trailing { bytes: 1, .. }))
        ));
        let newer = altered(&state, name, |section| section.version += 1);
        assert!(matches!(
            read(&newer),
            Err(StateError::Format(FormatError::Version {
                found: 2,
                known: 1,
                ..
            }))
        ));
        let mut without = state.clone();
        without.take(name).unwrap();
        let error = read(&without).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_section_that_the_machine_does_not_know_is_refused_by_name() {
    if !have_kvm() {
        return;
    }
    let (_, mut state) = paused_counter();
    state.add("graphics", 1, vec![1]).unwrap();
    let mut machine = incoming(&config(16 << 20, 1)).machine;
    let error = machine.load(&mut state).unwrap_err().to_string();
    assert!(error.contains("\"graphics\""), "{error}");
}

#[test]
fn a_damaged_state_is_loaded_or_refused_and_never_brings_the_vmm_down() {
    if !have_kvm() {
        return;
    }
    let (_, state) = paused_counter();
    let names = names(&state);
    let mut random = spec::stamp::Random::new(1);
    for _ in 0..100 {
        let mut damaged = state.clone();
        for _ in 0..1 + random.below(8) {
            let name = &names[random.below(names.len() as u64) as usize];
            let (place, byte) = (random.next(), random.next() as u8);
            damaged = altered(&damaged, name, |section| {
                let at = (place % section.bytes.len() as u64) as usize;
                section.bytes[at] = byte;
            });
        }
        let mut machine = incoming(&config(16 << 20, 1)).machine;
        if machine.load(&mut damaged).is_ok() {
            // Whatever the guest does now, the VMM goes on.
            machine.run().unwrap();
            // One that has ended by then cannot be paused.
            let _ = machine.stop_vcpus();
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_are_no_state(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut state = Sections::default();
        for name in ["machine", "vcpus", "platform", "serial-console"] {
            state.add(name, 1, bytes.clone()).unwrap();
        }
        // Short of a whole platform in any case.
        prop_assert!(read(&state).is_err());
    }
}
