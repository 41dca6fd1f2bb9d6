// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's clocks are right at once after it has arrived, however long it was stopped.

use std::thread;
use std::time::Duration;

use host_migrator::{DestinationMachine, MachineState as Sections, SourceMachine};
use reference_vmm::state::MachineState;

use crate::guests::{
    MAILBOX, config, copy_memory, counter, have_kvm, incoming, program, stopped_counter,
};

const HOPS: u32 = 10;
/// How long the guest is stopped at each hop.
const STOPPED: Duration = Duration::from_millis(150);
/// How long the guest is held after each arrival.
const HELD: Duration = Duration::from_millis(100);

/// By how many nanoseconds the guest's paravirtual clock is behind the host's wall clock, except for a constant. The
/// guest's own wall clock is behind by the same.
fn behind(state: &Sections) -> i128 {
    let state = MachineState::take_from(&mut state.clone()).unwrap();
    let clock = state.platform.clock;
    i128::from(clock.realtime) - i128::from(clock.value)
}

#[test]
fn the_guests_clock_has_lost_nothing_after_ten_hops() {
    if !have_kvm() {
        return;
    }
    let mut subject = stopped_counter();
    let mut state = subject.machine.save().unwrap();
    let first = behind(&state);
    for _ in 0..HOPS {
        thread::sleep(STOPPED);
        let mut next = incoming(&config(16 << 20, 1));
        copy_memory(subject.machine.ram(), next.machine.ram());
        next.machine.load(&mut state).unwrap();
        subject.machine.hand_over();
        thread::sleep(HELD);
        let count = subject.word(MAILBOX);
        next.machine.run().unwrap();
        next.wait("the guest to go on", |next| next.word(MAILBOX) > count);
        next.stop();
        state = next.machine.save().unwrap();
        subject = next;
    }
    let lost = Duration::from_nanos((behind(&state) - first).unsigned_abs() as u64);
    let stopped = HOPS * (STOPPED + HELD);
    assert!(
        lost < stopped / 10,
        "the guest's clock is off by {lost:?} after {stopped:?} of pauses"
    );
}

#[test]
fn a_guest_that_was_stopped_for_an_hour_finds_the_right_time() {
    if !have_kvm() {
        return;
    }
    const HOUR: u64 = 3_600_000_000_000;
    let mut subject = program(16 << 20, &counter());
    subject.stop();
    let bytes = subject.machine.save().unwrap();
    // As if it had been saved an hour ago.
    let mut state = MachineState::take_from(&mut bytes.clone()).unwrap();
    state.platform.clock.realtime -= HOUR;
    let mut old = state.to_sections().unwrap();
    let mut next = incoming(&config(16 << 20, 1));
    next.machine.load(&mut old).unwrap();
    let now = next.machine.save().unwrap();
    let gained = behind(&bytes) - behind(&now);
    assert!(
        gained.abs_diff(i128::from(HOUR)) < u128::from(HOUR) / 1000,
        "{gained} ns"
    );
}
