// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Peers that block, and cancels in every state.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::{
    Connection, Migration, MigrationError, MigrationHandle, MigrationParams, MigrationState, Owner,
    OwnershipRecord, receive,
};
use software_guest::machine::SoftDestination;
use software_guest::memory::{Memory, like};
use software_guest::proxy::{Fault, Wire};
use software_guest::workload::{Behaviour, Workload};
use software_guest::{Guest, migrate};

/// The time limit for what must happen.
const FOR_EVER: Duration = Duration::from_secs(30);

/// A guest with more memory than all socket buffers on the path hold.
fn guest() -> Arc<Guest> {
    let guest = Guest::new(Memory::new(10_000, 0));
    guest.memory.pages().for_each(|pfn| guest.write(pfn));
    Arc::new(guest)
}

fn wait_for(handle: &MigrationHandle, what: impl Fn(&MigrationHandle) -> bool) {
    let end = Instant::now() + FOR_EVER;
    while !what(handle) {
        assert!(Instant::now() < end, "{:?}", handle.status());
        thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a migration over a wire with faults. The destination runs in a thread of its own.
fn start(guest: &Guest, forth: Fault, back: Fault, params: MigrationParams) -> MigrationHandle {
    let (_wire, here, there) = Wire::new(forth, back);
    let ram = like(&guest.memory.ram);
    thread::spawn(move || {
        let mut machine = SoftDestination::default();
        let ownership = OwnershipRecord::there();
        let channel = there.try_into().unwrap();
        let _ = receive(channel, &ram, &mut machine, &ownership, &mut |_| ());
    });
    Migration::start(guest.source(), params, here.try_into().unwrap()).unwrap()
}

/// Cancels, and checks that the guest runs on here and can be migrated again.
fn assert_cancels(guest: &Arc<Guest>, handle: MigrationHandle) {
    assert!(handle.cancel());
    wait_for(&handle, MigrationHandle::is_over);
    assert_eq!(handle.status().status, MigrationState::Cancelled);
    assert!(!handle.cancel(), "a finished migration cannot be cancelled");
    let (source, result) = handle.join();
    assert!(
        matches!(result, Err(MigrationError::Cancelled)),
        "{result:?}"
    );
    assert!(!guest.machine.is_stopped() && !guest.machine.is_handed_over());
    assert!(!guest.vcpu_log.is_running() && !guest.own_log.is_running());
    assert_eq!(guest.hints.done.load(Ordering::Acquire), 1);
    let behaviour = Behaviour {
        seed: 3,
        hints: true,
        pause: 0,
        first_page: 0,
    };
    let workload = Workload::start(guest, behaviour);
    let steps = workload.steps();
    let end = Instant::now() + FOR_EVER;
    while workload.steps() == steps {
        assert!(Instant::now() < end, "the guest does not run on");
        thread::yield_now();
    }
    let params = MigrationParams::default().with_max_rounds(3);
    let again = migrate(source, params);
    workload.stop();
    assert!(again.destination.runs);
    assert_eq!(again.wrong_pages(&guest.memory), []);
}

#[test]
fn cancelled_while_the_destination_has_not_even_greeted() {
    let guest = guest();
    let (here, _silent) = UnixStream::pair().unwrap();
    let channel = Connection::try_from(here).unwrap();
    let handle = Migration::start(guest.source(), MigrationParams::default(), channel).unwrap();
    wait_for(&handle, |handle| {
        handle.status().status == MigrationState::Setup
    });
    assert_cancels(&guest, handle);
}

#[test]
fn cancelled_while_the_destination_takes_no_byte_any_more() {
    let guest = guest();
    let forth = Fault {
        stall_after: Some(1 << 20),
        ..Fault::default()
    };
    let handle = start(&guest, forth, Fault::default(), MigrationParams::default());
    wait_for(&handle, |handle| handle.status().ram.transferred > 1 << 20);
    assert_eq!(handle.status().status, MigrationState::Active);
    assert_cancels(&guest, handle);
}

#[test]
fn cancelled_while_it_keeps_to_a_bandwidth_limit() {
    let guest = guest();
    let params = MigrationParams::default().with_max_bandwidth(1 << 10);
    let handle = start(&guest, Fault::default(), Fault::default(), params);
    wait_for(&handle, |handle| handle.status().ram.normal > 0);
    assert_cancels(&guest, handle);
}

#[test]
fn cancelled_while_the_guest_is_stopped_and_the_destination_does_not_get_ready() {
    let guest = guest();
    let back = Fault {
        // Accept, and two RoundReceived.
        answers: Some(3),
        ..Fault::default()
    };
    let handle = start(&guest, Fault::default(), back, MigrationParams::default());
    wait_for(&handle, |handle| {
        handle.status().status == MigrationState::Device
    });
    assert!(guest.machine.is_stopped());
    assert_cancels(&guest, handle);
}

#[test]
fn a_stopped_guest_waits_for_the_destination_no_longer_than_the_switchover_may_take() {
    let guest = guest();
    let back = Fault {
        // Accept, and two RoundReceived.
        answers: Some(3),
        ..Fault::default()
    };
    let params = MigrationParams::default()
        // Longer than any test runs.
        .with_peer_timeout(Duration::from_secs(100_000))
        .with_switchover_timeout(Duration::from_millis(100));
    let (_, result) = start(&guest, Fault::default(), back, params).join();
    let error = result.unwrap_err().to_string();
    assert!(error.contains("the switchover was not done in"), "{error}");
    assert!(!guest.machine.is_stopped() && !guest.machine.is_handed_over());
}

#[test]
fn a_guest_that_was_handed_over_cannot_be_taken_back() {
    let guest = guest();
    let back = Fault {
        // Accept, two RoundReceived, and Ready.
        answers: Some(4),
        ..Fault::default()
    };
    let params = MigrationParams::default().with_peer_timeout(Duration::from_secs(2));
    let handle = start(&guest, Fault::default(), back, params);
    wait_for(&handle, |_| guest.machine.is_handed_over());
    assert!(!handle.cancel());
    let (_, result) = handle.join();
    assert!(
        matches!(result, Err(MigrationError::HandedOverUnconfirmed(_))),
        "{result:?}"
    );
    assert!(guest.machine.is_stopped());
    assert_eq!(guest.ownership.get().owner, Owner::Undecided);
}

#[test]
fn a_destination_that_is_silent_for_too_long_is_given_up() {
    let guest = guest();
    let forth = Fault {
        stall_after: Some(1 << 20),
        ..Fault::default()
    };
    let params = MigrationParams::default().with_peer_timeout(Duration::from_millis(100));
    let (_, result) = start(&guest, forth, Fault::default(), params).join();
    let error = result.unwrap_err().to_string();
    assert!(error.contains("silent"), "{error}");
    assert!(!guest.machine.is_stopped());
}

/// Migrates over a wire with these faults. The switchover may take 30 ms: the migration must fail, and the guest must
/// run on.
fn assert_given_up_in_the_switchover(forth: Fault, back: Fault) {
    let guest = guest();
    let params = MigrationParams::default()
        // Longer than any test runs.
        .with_peer_timeout(Duration::from_secs(100_000))
        .with_switchover_timeout(Duration::from_millis(30))
        .with_max_rounds(1);
    let (_, result) = start(&guest, forth, back, params).join();
    let error = result.unwrap_err().to_string();
    assert!(error.contains("the switchover was not done in"), "{error}");
    assert!(!guest.machine.is_stopped() && !guest.machine.is_handed_over());
    assert_eq!(guest.ownership.get().owner, Owner::Here);
    assert!(!guest.vcpu_log.is_running() && !guest.own_log.is_running());
}

#[test]
fn a_destination_that_answers_byte_by_byte_does_not_hold_a_stopped_guest() {
    let trickle = Fault {
        trickle: Some(Duration::from_millis(5)),
        ..Fault::default()
    };
    assert_given_up_in_the_switchover(Fault::default(), trickle);
}
