// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The embedded bare guest on the machine: its own checks find nothing wrong.

use host_migrator::{DestinationMachine, SourceMachine};
use reference_vmm::{BareWorkload, Guest, GuestStatus, MachineConfig, MachineEvent};
use spec::bare::{Event, StatusWord};

use crate::guests::{Subject, config, copy_memory, guest_on, have_kvm, incoming};

fn two_vcpus() -> MachineConfig {
    config(128 << 20, 2)
}

fn workload() -> Guest {
    Guest::Bare(BareWorkload {
        seed: 11,
        in_use_bytes: 16 << 20,
        freed_bytes: 32 << 20,
        dirty_rate: 20 << 20,
        churn_rate: 1000,
        ..Default::default()
    })
}

fn status(subject: &Subject, word: StatusWord) -> u64 {
    let status = GuestStatus::read(subject.machine.ram()).unwrap();
    status.map_or(0, |status| status.word(word))
}

fn ready(subject: &Subject) {
    let event = subject.events.recv().unwrap();
    let said: Vec<u8> = subject.console.try_iter().collect();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(event, MachineEvent::Announced(Event::Ready), "{said}");
}

/// Waits for two more passes of the guest's checks, then checks their result.
fn check(subject: &mut Subject) {
    let passes = status(subject, StatusWord::FullPasses);
    subject.wait("the guest's checks", |subject| {
        status(subject, StatusWord::FullPasses) >= passes + 2
    });
    assert_eq!(status(subject, StatusWord::WrongStamps), 0);
    assert_eq!(status(subject, StatusWord::WrongHeartbeats), 0);
}

#[test]
fn the_bare_guest_runs_and_checks_on_two_vcpus_before_and_after_a_move() {
    if !have_kvm() {
        return;
    }
    let mut source = guest_on(&two_vcpus(), &workload());
    source.machine.start().unwrap();
    ready(&source);
    check(&mut source);
    source.stop();
    let mut state = source.machine.save().unwrap();
    let writes = status(&source, StatusWord::Writes);
    let mut destination = incoming(&two_vcpus());
    copy_memory(source.machine.ram(), destination.machine.ram());
    destination.machine.load(&mut state).unwrap();
    source.machine.hand_over();
    destination.machine.run().unwrap();
    destination.wait("the guest to write", |subject| {
        status(subject, StatusWord::Writes) > writes
    });
    check(&mut destination);
}

#[test]
fn a_guest_notices_if_a_move_forgets_the_vmms_own_writes() {
    if !have_kvm() {
        return;
    }
    let mut source = guest_on(&two_vcpus(), &workload());
    source.machine.start().unwrap();
    ready(&source);
    let page = spec::PageRange::new(spec::bare::HEARTBEAT_GPA / spec::PAGE_SIZE, 1).unwrap();
    let mut old = vec![0; spec::PAGE_SIZE as usize];
    source.machine.stop_vcpus().unwrap();
    source.machine.ram().read(page, &mut old).unwrap();
    source.machine.start().unwrap();
    check(&mut source);
    source.stop();
    let mut state = source.machine.save().unwrap();
    let mut destination = incoming(&two_vcpus());
    copy_memory(source.machine.ram(), destination.machine.ram());
    destination.machine.ram().write(page, &old).unwrap();
    destination.machine.load(&mut state).unwrap();
    destination.machine.run().unwrap();
    destination.wait("the guest to notice", |subject| {
        status(subject, StatusWord::WrongHeartbeats) > 0
    });
}
