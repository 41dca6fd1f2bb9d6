// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest runs in only one place.

use host_migrator::{DestinationMachine, MachineState as Sections, SourceMachine};
use reference_vmm::{Guest, Machine, MachineConfig, MachineEvent, Outlets, SetupError};

use crate::guests::{MAILBOX, config, have_kvm, incoming, program, stopped_counter};

#[test]
fn a_machine_that_was_handed_over_never_runs_again() {
    if !have_kvm() {
        return;
    }
    let mut subject = stopped_counter();
    subject.machine.hand_over();
    let count = subject.word(MAILBOX);
    assert!(subject.machine.resume().is_err());
    assert!(subject.machine.start().is_err());
    assert!(subject.machine.save().is_err());
    assert!(subject.machine.load(&mut Sections::default()).is_err());
    assert!(DestinationMachine::run(&mut subject.machine).is_err());
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(subject.word(MAILBOX), count);
}

#[test]
fn a_machine_that_was_handed_over_goes_on_where_an_operator_takes_it_back() {
    if !have_kvm() {
        return;
    }
    let mut subject = stopped_counter();
    subject.machine.hand_over();
    let count = subject.word(MAILBOX);
    subject.machine.take_back().unwrap();
    subject.wait("the guest to go on", |subject| {
        subject.word(MAILBOX) != count
    });
}

#[test]
fn a_machine_without_its_guest_does_not_run() {
    if !have_kvm() {
        return;
    }
    let mut subject = incoming(&config(16 << 20, 1));
    assert!(subject.machine.start().is_err());
    assert!(subject.machine.save().is_err());
    assert!(!subject.machine.is_running());
}

#[test]
fn a_guest_that_crashes_is_reported_and_cannot_be_migrated() {
    if !have_kvm() {
        return;
    }
    let undefined_instruction = [0x0f, 0x0b];
    let mut subject = program(16 << 20, &undefined_instruction);
    subject.machine.start().unwrap();
    let event = subject.events.recv().unwrap();
    assert!(matches!(event, MachineEvent::Crashed(_)), "{event:?}");
    let refused = subject.machine.stop_vcpus().unwrap_err().to_string();
    assert!(refused.contains("has ended"), "{refused}");
    assert!(subject.machine.save().is_err());
    assert!(subject.machine.resume().is_err());
}

#[test]
fn impossible_machines_are_refused_with_the_reason() {
    if !have_kvm() {
        return;
    }
    let make = |config: &MachineConfig| {
        let outlets = Outlets {
            console: Box::new(std::io::sink()),
            events: std::sync::mpsc::channel().0,
        };
        Machine::new(config, &Guest::Bare(Default::default()), outlets).map(|_| ())
    };
    assert!(matches!(
        make(&config(16 << 20, 0)),
        Err(SetupError::VcpuCount(0))
    ));
    assert!(matches!(
        make(&config(16 << 20, 17)),
        Err(SetupError::VcpuCount(17))
    ));
    assert!(matches!(make(&config(0, 1)), Err(SetupError::Memory(_))));
    assert!(matches!(
        make(&config(1 << 20, 1)),
        Err(SetupError::Boot(_))
    ));
    let lonely = MachineConfig {
        balloon_socket: Some("/nobody/listens/here".into()),
        agent_socket: None,
        ..config(16 << 20, 1)
    };
    assert!(matches!(make(&lonely), Err(SetupError::Balloon(_))));
}
