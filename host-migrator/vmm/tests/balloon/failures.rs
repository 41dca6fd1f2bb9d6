// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Back ends that die, hang, are not there, or can do little.

use std::os::unix::net::UnixListener;

use host_migrator::MigrationBitmap;
use reference_vmm::virtio::VirtioError;
use virtio_bindings::virtio_mmio as reg;

use crate::driver::Driver;
use crate::plain::PlainBackEnd;
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
    driver.wait_for_change();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 0x4f, "needs reset");
    // A migration learns of it; its log may lack what the back end wrote last.
    assert!(
        log.harvest(&MigrationBitmap::new(subject.ram.bitmap_pages()))
            .is_err()
    );
    log.stop().unwrap();
    assert!(matches!(subject.device.stop(), Err(VirtioError::Lost(_))));
    assert!(matches!(subject.device.save(), Err(VirtioError::Lost(_))));
    subject.device.resume();
    // The guest may do what it likes with the dead device; it just does not get it back.
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 1);
    driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    driver.write(reg::VIRTIO_MMIO_STATUS, 3);
    driver.write(reg::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 3);
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
fn nobody_who_listens_and_nobody_who_answers_are_errors() {
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
