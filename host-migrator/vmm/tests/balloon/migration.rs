// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration needs: the state, and the dirty log.

use host_migrator::{DirtyLog, MigrationBitmap};
use reference_vmm::virtio::{StateError, VirtioError, VirtioState};
use spec::PAGE_SIZE;
use spec::balloon::Command;
use virtio_bindings::virtio_mmio as reg;

use crate::daemon::Daemon;
use crate::driver::{Driver, FEATURES};
use crate::rig::{MIB, connect, eventually, guest_ram, machine};
use crate::vcpu;

#[test]
fn a_second_back_end_goes_on_where_the_first_was_stopped() {
    let (Some(source_vm), Some(destination_vm)) = (machine(), machine()) else {
        return;
    };
    let ram = guest_ram();
    let (first, second) = (Daemon::start(), Daemon::start());
    let source = connect(&first.socket(), &ram, &source_vm).unwrap();
    let mut driver = Driver::new(&source, &ram);
    driver.bring_up();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 77);
    for _ in 0..100 {
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
        driver.wait_until_used();
    }
    source.stop().unwrap();
    for _ in 0..3 {
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
    }
    let state = source.save().unwrap();
    assert_eq!(driver.used(), 100, "a stopped back end took a buffer");
    assert_eq!(state.bases[3], 100);
    let bytes = postcard::to_allocvec(&state).unwrap();

    let destination = connect(&second.socket(), &ram, &destination_vm).unwrap();
    let state: VirtioState = postcard::from_bytes(&bytes).unwrap();
    destination.load(&state).unwrap();
    let mut driver = driver.moved_to(&destination);
    assert_eq!(driver.used(), 100, "a back end ran before it was told to");
    destination.resume();
    driver.wait_until_used();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    assert_eq!(driver.used(), 104);
    // The guest must learn that the hinting it knows of is over.
    eventually("the interrupt", || {
        vcpu::interrupt_is_pending(&destination_vm).then_some(())
    });
    let config = driver.wait_for_change();
    assert_eq!(config.free_page_hint_cmd_id, Command::DONE);
    assert_eq!(config.actual, 77);
}

#[test]
fn a_migration_that_fails_lets_the_source_run_on() {
    let Some(vm) = machine() else { return };
    let (daemon, ram) = (Daemon::start(), guest_ram());
    let device = connect(&daemon.socket(), &ram, &vm).unwrap();
    let mut driver = Driver::new(&device, &ram);
    driver.bring_up();
    for round in 1..=5 {
        device.stop().unwrap();
        device.stop().unwrap();
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
        device.save().unwrap();
        assert_eq!(driver.used(), round - 1);
        device.resume();
        device.resume();
        driver.wait_until_used();
    }
}

#[test]
fn a_guest_without_a_driver_migrates_too() {
    let (Some(source_vm), Some(destination_vm)) = (machine(), machine()) else {
        return;
    };
    let ram = guest_ram();
    let (first, second) = (Daemon::start(), Daemon::start());
    let source = connect(&first.socket(), &ram, &source_vm).unwrap();
    let mut log = source.dirty_log();
    log.start().unwrap();
    source.stop().unwrap();
    let state = source.save().unwrap();
    log.stop().unwrap();
    let destination = connect(&second.socket(), &ram, &destination_vm).unwrap();
    destination.load(&state).unwrap();
    destination.resume();
    let mut driver = Driver::new(&destination, &ram);
    driver.bring_up();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
}

#[test]
fn a_state_is_given_only_while_stopped_and_taken_only_by_an_unused_device() {
    let Some(vm) = machine() else { return };
    let (daemon, ram) = (Daemon::start(), guest_ram());
    let device = connect(&daemon.socket(), &ram, &vm).unwrap();
    let mut driver = Driver::new(&device, &ram);
    driver.bring_up();
    assert!(matches!(device.save(), Err(VirtioError::NotStopped)));
    device.stop().unwrap();
    let state = device.save().unwrap();
    assert!(matches!(device.load(&state), Err(VirtioError::InUse)));
}

#[test]
fn a_state_that_was_tampered_with_is_refused_and_leaves_the_device_usable() {
    let (Some(source_vm), Some(destination_vm)) = (machine(), machine()) else {
        return;
    };
    let ram = guest_ram();
    let (first, second) = (Daemon::start(), Daemon::start());
    let source = connect(&first.socket(), &ram, &source_vm).unwrap();
    let mut driver = Driver::new(&source, &ram);
    driver.bring_up();
    source.stop().unwrap();
    let good = source.save().unwrap();
    let destination = connect(&second.socket(), &ram, &destination_vm).unwrap();
    let tampered: [fn(&mut VirtioState); 5] = [
        |state| state.registers.driver_features |= 1 << 20,
        |state| state.registers.queues[3].used = 20 * MIB,
        |state| state.registers.queues[0].size = 5,
        |state| state.registers.status = 0x20,
        |state| state.back_end = Some(vec![0; 1 << 20]),
    ];
    for tamper in tampered {
        let mut state = good.clone();
        tamper(&mut state);
        let error = destination.load(&state).unwrap_err();
        assert!(matches!(error, VirtioError::State(_)), "{error}");
    }
    let mut state = good.clone();
    state.registers.driver_features = FEATURES | 1 << 6;
    let error = destination.load(&state).unwrap_err().to_string();
    assert!(error.contains("features 0x10000004a"), "{error}");
    let refused = matches!(
        destination.load(&state),
        Err(VirtioError::State(StateError::Features { .. }))
    );
    assert!(refused);
    destination.load(&good).unwrap();
}

#[test]
fn a_back_end_refuses_a_state_of_its_own_that_was_tampered_with() {
    let (Some(source_vm), Some(destination_vm)) = (machine(), machine()) else {
        return;
    };
    let ram = guest_ram();
    let (first, second) = (Daemon::start(), Daemon::start());
    let source = connect(&first.socket(), &ram, &source_vm).unwrap();
    Driver::new(&source, &ram).bring_up();
    source.stop().unwrap();
    let mut state = source.save().unwrap();
    let back_end = state.back_end.as_mut().unwrap();
    back_end[0] ^= 0xff;
    let destination = connect(&second.socket(), &ram, &destination_vm).unwrap();
    let error = destination.load(&state).unwrap_err();
    assert!(matches!(error, VirtioError::Refused { .. }), "{error}");
}

fn harvest(log: &mut dyn DirtyLog, pages: u64) -> Vec<u64> {
    let bitmap = MigrationBitmap::new(pages);
    log.harvest(&bitmap).unwrap();
    (0..pages).filter(|page| bitmap.contains(*page)).collect()
}

#[test]
fn the_dirty_log_has_the_used_ring_and_nothing_of_the_hinted_pages() {
    let Some(vm) = machine() else { return };
    let (daemon, ram) = (Daemon::start(), guest_ram());
    let device = connect(&daemon.socket(), &ram, &vm).unwrap();
    let mut driver = Driver::new(&device, &ram);
    driver.bring_up();
    let pages = ram.bitmap_pages();
    let mut log = device.dirty_log();
    assert!(
        harvest(&mut *log, pages).is_empty(),
        "a log that was not started"
    );
    log.start().unwrap();
    harvest(&mut *log, pages);
    for _ in 0..2 {
        driver.add_hint(4 * MIB, MIB as u32);
        driver.add_hint(40 * MIB, MIB as u32);
        driver.kick();
        driver.wait_until_used();
        device.stop().unwrap();
        let dirty = harvest(&mut *log, pages);
        device.resume();
        assert_eq!(dirty, [driver.used_ring() / PAGE_SIZE]);
        assert!(harvest(&mut *log, pages).is_empty());
    }
    log.start().unwrap();
    log.stop().unwrap();
    log.stop().unwrap();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    assert!(harvest(&mut *log, pages).is_empty());
}

#[test]
fn no_buffer_is_lost_or_used_twice_while_logging_is_switched() {
    let Some(vm) = machine() else { return };
    let (daemon, ram) = (Daemon::start(), guest_ram());
    let device = connect(&daemon.socket(), &ram, &vm).unwrap();
    let mut driver = Driver::new(&device, &ram);
    driver.bring_up();
    let mut log = device.dirty_log();
    let switching = std::thread::spawn(move || {
        for _ in 0..100 {
            log.start().unwrap();
            log.stop().unwrap();
        }
    });
    while !switching.is_finished() {
        for _ in 0..32 {
            driver.add_hint(4 * MIB, 4096);
            driver.kick();
        }
        driver.wait_until_used();
    }
    switching.join().unwrap();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
}
