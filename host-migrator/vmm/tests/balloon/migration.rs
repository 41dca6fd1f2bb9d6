// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration needs: the state and the dirty log.

use host_migrator::{DirtyLog, MigrationBitmap};
use reference_vmm::virtio::{StateError, VirtioError, VirtioState};
use spec::PAGE_SIZE;
use spec::balloon::{Command, Config};
use virtio_bindings::virtio_mmio as reg;

use crate::daemon::Migrator;
use crate::driver::{FEATURES, REPORTING_TOO, STATISTICS};
use crate::rig::{MIB, Subject, eventually, guest_ram};
use crate::shared::registers::Registers;
use crate::vcpu;

#[test]
fn a_second_back_end_goes_on_where_the_first_was_stopped() {
    let ram = guest_ram();
    let (Some(source), Some(destination)) = (Subject::new(&ram), Subject::new(&ram)) else {
        return;
    };
    let mut driver = source.running_driver();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 77);
    for _ in 0..100 {
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
        driver.wait_until_used();
    }
    source.device.stop().unwrap();
    for _ in 0..3 {
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
    }
    let state = source.device.save().unwrap();
    assert_eq!(driver.used(), 100, "a stopped back end must take no buffer");
    assert_eq!(state.bases[3], 100);
    let bytes = postcard::to_allocvec(&state).unwrap();

    let state: VirtioState = postcard::from_bytes(&bytes).unwrap();
    destination.device.load(&state).unwrap();
    let mut driver = driver.moved_to(&destination.device);
    assert_eq!(
        driver.used(),
        100,
        "a back end must not run before it is told to"
    );
    destination.device.resume();
    driver.wait_until_used();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    assert_eq!(driver.used(), 104);
    // The guest must learn that its round of hints is over.
    eventually("the interrupt", || {
        vcpu::interrupt_is_pending(&destination.vm).then_some(())
    });
    let config = driver.wait_for_change();
    assert_eq!(config.free_page_hint_cmd_id, Command::DONE);
    assert_eq!(config.actual, 77);
}

#[test]
fn the_balloons_content_moves_with_the_guest() {
    let ram = guest_ram();
    let (Some(source), Some(destination)) = (Subject::new(&ram), Subject::new(&ram)) else {
        return;
    };
    let mut migrator = Migrator::connect(&source.daemon, ram.bitmap_pages());
    migrator.set_target(600);
    let mut driver = source.driver().with_features(REPORTING_TOO);
    driver.bring_up();
    driver.write(reg::VIRTIO_MMIO_CONFIG + Config::POISON as u32, 0xaaaa_aaaa);
    driver.give_statistics(&[(4, 1234)]);
    driver.inflate(1024..1536);
    driver.inflate([8192, 8200]);
    driver.set_actual(514);
    // A failed migration stops the rings and starts them again. The next one stops them for good.
    let mut log = source.device.dirty_log();
    log.start().unwrap();
    assert_eq!(migrator.balloon().ballooned_pages, 514);
    source.device.stop().unwrap();
    // The statistics buffer belongs to the guest again: the other device has none.
    assert_eq!(driver.used_of(STATISTICS), 1);
    let state = source.device.save().unwrap();

    destination.device.load(&state).unwrap();
    destination.device.resume();
    let mut driver = driver.moved_to(&destination.device);
    let config = driver.wait_for_change();
    assert_eq!((config.num_pages, config.actual), (600, 514));
    assert_eq!(config.poison_val, 0xaaaa_aaaa);
    let mut migrator = Migrator::connect(&destination.daemon, ram.bitmap_pages());
    driver.deflate([8200, 1024, 1535]);
    driver.inflate([2048]);
    driver.give_statistics(&[(4, 1234)]);
    driver.set_actual(512);
    let balloon = migrator.balloon();
    assert_eq!((balloon.ballooned_pages, balloon.actual_pages), (512, 512));
    assert_eq!((balloon.wanted_pages, balloon.target_pages), (600, 600));
    assert_eq!((balloon.bad_buffers, balloon.out_of_range), (0, 0));
}

#[test]
fn a_migration_that_fails_lets_the_source_run_on() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    for round in 1..=5 {
        subject.device.stop().unwrap();
        subject.device.stop().unwrap();
        driver.add_hint(4 * MIB, 4096);
        driver.kick();
        subject.device.save().unwrap();
        assert_eq!(driver.used(), round - 1);
        subject.device.resume();
        subject.device.resume();
        driver.wait_until_used();
    }
}

#[test]
fn a_guest_without_a_driver_migrates_too() {
    let ram = guest_ram();
    let (Some(source), Some(destination)) = (Subject::new(&ram), Subject::new(&ram)) else {
        return;
    };
    let mut log = source.device.dirty_log();
    log.start().unwrap();
    source.device.stop().unwrap();
    let state = source.device.save().unwrap();
    log.stop().unwrap();
    destination.device.load(&state).unwrap();
    destination.device.resume();
    let mut driver = destination.running_driver();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
}

#[test]
fn a_state_is_saved_only_while_stopped_and_loaded_only_into_an_unused_device() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let _driver = subject.running_driver();
    assert!(matches!(
        subject.device.save(),
        Err(VirtioError::NotStopped)
    ));
    subject.device.stop().unwrap();
    let state = subject.device.save().unwrap();
    assert!(matches!(
        subject.device.load(&state),
        Err(VirtioError::InUse)
    ));
}

#[test]
fn a_state_that_was_tampered_with_is_refused_and_leaves_the_device_usable() {
    let ram = guest_ram();
    let (Some(source), Some(destination)) = (Subject::new(&ram), Subject::new(&ram)) else {
        return;
    };
    let _driver = source.running_driver();
    source.device.stop().unwrap();
    let good = source.device.save().unwrap();
    let tampered: [fn(&mut VirtioState); 5] = [
        |state| state.registers.driver_features |= 1 << 20,
        |state| state.registers.queues[3].used = 20 * MIB,
        |state| state.registers.queues[0].size = 5,
        |state| state.registers.status = 0x20,
        |state| state.back_end = Some(vec![0; 10 << 20]),
    ];
    for tamper in tampered {
        let mut state = good.clone();
        tamper(&mut state);
        let error = destination.device.load(&state).unwrap_err();
        assert!(matches!(error, VirtioError::State(_)), "{error}");
    }
    let mut state = good.clone();
    state.registers.driver_features = FEATURES | 1 << 6;
    let error = destination.device.load(&state).unwrap_err().to_string();
    assert!(error.contains("features 0x10000004a"), "{error}");
    let refused = matches!(
        destination.device.load(&state),
        Err(VirtioError::State(StateError::Features { .. }))
    );
    assert!(refused);
    destination.device.load(&good).unwrap();
}

#[test]
fn a_back_end_refuses_a_state_of_its_own_that_was_tampered_with() {
    let ram = guest_ram();
    let (Some(source), Some(destination)) = (Subject::new(&ram), Subject::new(&ram)) else {
        return;
    };
    source.running_driver();
    source.device.stop().unwrap();
    let mut state = source.device.save().unwrap();
    let back_end = state.back_end.as_mut().unwrap();
    back_end[0] ^= 0xff;
    let error = destination.device.load(&state).unwrap_err();
    assert!(matches!(error, VirtioError::Refused { .. }), "{error}");
}

fn harvest(log: &mut dyn DirtyLog, pages: u64) -> Vec<u64> {
    let bitmap = MigrationBitmap::new(pages);
    log.harvest(&bitmap).unwrap();
    (0..pages).filter(|page| bitmap.contains(*page)).collect()
}

#[test]
fn the_dirty_log_has_the_used_ring_and_nothing_of_the_hinted_pages() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    let pages = subject.ram.bitmap_pages();
    let mut log = subject.device.dirty_log();
    assert!(
        harvest(&mut *log, pages).is_empty(),
        "a log that was not started is empty"
    );
    log.start().unwrap();
    harvest(&mut *log, pages);
    for _ in 0..2 {
        driver.add_hint(4 * MIB, MIB as u32);
        driver.add_hint(40 * MIB, MIB as u32);
        driver.kick();
        driver.wait_until_used();
        subject.device.stop().unwrap();
        let dirty = harvest(&mut *log, pages);
        subject.device.resume();
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
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    let mut log = subject.device.dirty_log();
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
