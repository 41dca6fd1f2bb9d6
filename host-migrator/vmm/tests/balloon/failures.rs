// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Back ends that die, hang, are missing, or lack features.

use std::os::unix::net::UnixListener;

use host_migrator::MigrationBitmap;
use reference_vmm::virtio::VirtioError;
use virtio_bindings::virtio_mmio as reg;

use crate::driver::Driver;
use crate::plain::PlainBackEnd;
use crate::refusing::{Refusal, RefusingBackEnd};
use crate::rig::{MIB, Subject, connect, eventually, guest_ram, machine};
use crate::shared::registers::Registers;

#[test]
fn a_back_end_that_dies_is_noticed_and_the_guest_runs_on() {
    let Some(mut subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    let mut log = subject.device.dirty_log();
    log.start().unwrap();
    subject.daemon.kill();
    eventually("the loss", || subject.device.lost());
    assert_eq!(
        driver.read(reg::VIRTIO_MMIO_STATUS),
        0xf,
        "the driver keeps the device, so that another back end can take over"
    );
    // A migration learns of the loss, because the log may lack what the back end wrote last.
    assert!(
        log.harvest(&MigrationBitmap::new(subject.ram.bitmap_pages()))
            .is_err()
    );
    log.stop().unwrap();
    // The guest may use the dead device in any way, without effect.
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 1);
    driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    driver.write(reg::VIRTIO_MMIO_STATUS, 3);
    driver.write(reg::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 3);
}

#[test]
fn a_machine_whose_back_end_has_died_migrates_without_it() {
    let ram = guest_ram();
    let (Some(mut source), Some(destination)) = (Subject::new(&ram), Subject::new(&ram)) else {
        return;
    };
    let mut driver = source.running_driver();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 77);
    for _ in 0..5 {
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
        driver.wait_until_used();
    }
    source.daemon.kill();
    eventually("the loss", || source.device.lost());
    // A buffer that no back end takes.
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    let mut log = source.device.dirty_log();
    log.start().unwrap();
    source.device.stop().unwrap();
    // A back end that only hangs may still write to a used ring.
    let bitmap = MigrationBitmap::new(ram.bitmap_pages());
    log.harvest(&bitmap).unwrap();
    assert!(bitmap.contains(driver.used_ring() / spec::PAGE_SIZE));
    let state = source.device.save().unwrap();
    assert!(state.back_end_lost);
    destination.device.load(&state).unwrap();
    destination.device.resume();
    let mut driver = driver.moved_to(&destination.device);
    assert_eq!(driver.wait_for_change().actual, 77);
    driver.wait_until_used();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    assert_eq!(driver.used(), 7);
    // After the failed migration the guest runs on at the source without a back end.
    log.stop().unwrap();
    source.device.resume();
}

#[test]
fn another_back_end_on_the_same_socket_takes_the_place_of_one_that_died() {
    let Some(mut subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 77);
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    let mut log = subject.device.dirty_log();
    log.start().unwrap();
    subject.daemon.kill();
    eventually("the loss", || subject.device.lost());
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    subject.daemon.start_again();
    eventually("another back end", || {
        subject.device.lost().is_none().then_some(())
    });
    driver.wait_until_used();
    assert_eq!(driver.used(), 2);
    assert_eq!(driver.wait_for_change().actual, 77);
    // What the first one wrote last is in no log, so this migration must fail. The next one need not.
    let bitmap = MigrationBitmap::new(subject.ram.bitmap_pages());
    let refused = log.harvest(&bitmap).unwrap_err().to_string();
    assert!(refused.contains("migrate again"), "{refused}");
    log.stop().unwrap();
    log.start().unwrap();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    assert!(log.harvest(&bitmap).unwrap() > 0);
    subject.device.stop().unwrap();
    assert!(!subject.device.save().unwrap().back_end_lost);
}

#[test]
fn a_back_end_that_hangs_ends_in_an_error() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let _driver = subject.running_driver();
    subject.daemon.freeze();
    let stopped = subject.device.stop();
    assert!(
        matches!(
            stopped,
            Err(VirtioError::Timeout {
                request: "GET_VRING_BASE"
            })
        ),
        "{stopped:?}"
    );
    let reason = subject.device.lost().unwrap();
    assert!(reason.contains("did not answer GET_VRING_BASE"), "{reason}");
}

#[test]
fn a_socket_without_a_listener_or_without_answers_is_an_error() {
    let Some(vm) = machine() else { return };
    let (folder, ram) = (tempfile::tempdir().unwrap(), guest_ram());
    let socket = folder.path().join("socket");
    let nobody = connect(&socket, &ram, &vm).unwrap_err();
    assert!(matches!(nobody, VirtioError::Connect { .. }), "{nobody}");
    let _silent = UnixListener::bind(&socket).unwrap();
    let silent = connect(&socket, &ram, &machine().unwrap()).unwrap_err();
    assert!(matches!(silent, VirtioError::Timeout { .. }), "{silent}");
}

#[test]
fn a_back_end_without_the_optional_parts_works_but_has_no_dirty_log() {
    let Some(vm) = machine() else { return };
    let (back_end, ram) = (PlainBackEnd::start(), guest_ram());
    let device = connect(&back_end.socket(), &ram, &vm).unwrap();
    let mut driver = Driver::new(&device, &ram);
    driver.bring_up();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 77);
    let refused = device.dirty_log().start().unwrap_err().to_string();
    assert!(refused.contains("VHOST_F_LOG_ALL"), "{refused}");
    device.stop().unwrap();
    let state = device.save().unwrap();
    assert_eq!(state.back_end, None);

    let (other, vm) = (PlainBackEnd::start(), machine().unwrap());
    let destination = connect(&other.socket(), &ram, &vm).unwrap();
    destination.load(&state).unwrap();
    destination.resume();
    let driver = driver.moved_to(&destination);
    assert_eq!(driver.wait_for_change().actual, 77);
}

/// A driver's four queues, on a back end that refuses things.
const ALL: [usize; 4] = [0, 1, 2, 3];

#[test]
fn a_back_end_that_does_not_stop_a_ring_is_connected_to_anew_and_all_rings_run() {
    let Some(vm) = machine() else { return };
    let (back_end, ram) = (RefusingBackEnd::start(), guest_ram());
    let device = connect(&back_end.socket(), &ram, &vm).unwrap();
    Driver::new(&device, &ram).bring_up();
    assert_eq!(back_end.state().rings(), ALL);
    for (connections, logs) in [(2, false), (3, true)] {
        back_end.state().refuses = Some(Refusal::Stop(2));
        let refused = if logs {
            device.dirty_log().start().unwrap_err().to_string()
        } else {
            device.stop().unwrap_err().to_string()
        };
        assert!(refused.contains("GET_VRING_BASE"), "{refused}");
        back_end.state().refuses = None;
        eventually("all rings", || {
            let state = back_end.state();
            let all = state.connections == connections && state.rings() == ALL;
            (all && !state.logs).then_some(())
        });
        eventually("the back end", || device.lost().is_none().then_some(()));
        // All is as it was.
        device.stop().unwrap();
        assert!(back_end.state().rings().is_empty());
        device.resume();
        assert_eq!(back_end.state().rings(), ALL);
    }
}

#[test]
fn a_log_that_cannot_be_switched_on_is_switched_off_and_the_rings_run() {
    let Some(vm) = machine() else { return };
    let (back_end, ram) = (RefusingBackEnd::start(), guest_ram());
    let device = connect(&back_end.socket(), &ram, &vm).unwrap();
    Driver::new(&device, &ram).bring_up();
    back_end.state().refuses = Some(Refusal::LoggedRing(1));
    let mut log = device.dirty_log();
    let refused = log.start().unwrap_err().to_string();
    assert!(refused.contains("SET_VRING_ADDR"), "{refused}");
    {
        let state = back_end.state();
        assert!(!state.logs, "a log that nobody harvests");
        assert_eq!(state.rings(), ALL);
        assert!(!state.running.contains(&Some(true)), "{state:?}");
    }
    back_end.state().refuses = None;
    log.start().unwrap();
    let state = back_end.state();
    assert!(state.logs);
    assert_eq!(state.running[..4], [Some(true); 4]);
}
