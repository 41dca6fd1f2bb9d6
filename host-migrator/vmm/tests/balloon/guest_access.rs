// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The effects of the guest's accesses on the real back end, and the answers.

use virtio_bindings::virtio_mmio as reg;

use crate::daemon::Migrator;
use crate::driver::HINTS;
use crate::rig::{MIB, Subject, eventually, guest_ram};
use crate::shared::registers::Registers;
use crate::vcpu;

#[test]
fn hints_of_a_driver_reach_the_back_end_and_its_requests_reach_the_driver() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    let mut migrator = Migrator::connect(&subject.daemon, subject.ram.bitmap_pages());
    let generation = driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION);

    let id = migrator.open(1);
    eventually("the interrupt", || {
        vcpu::interrupt_is_pending(&subject.vm).then_some(())
    });
    assert_eq!(driver.wait_for_change().free_page_hint_cmd_id, id.get());
    assert_ne!(driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);

    driver.send_command(id.get());
    driver.add_hint(4 * MIB, MIB as u32);
    driver.add_hint(40 * MIB, MIB as u32);
    driver.kick();
    driver.wait_until_used();
    assert_eq!(migrator.close(1).pages, 512);
    assert_eq!(subject.device.ignored_accesses(), 0);
}

#[test]
fn a_write_of_a_vcpu_to_queue_notify_kicks_the_back_end_without_an_exit() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    driver.add_hint(4 * MIB, 4096);
    vcpu::store_word(
        &subject.vm,
        &subject.ram,
        reg::VIRTIO_MMIO_QUEUE_NOTIFY,
        HINTS,
    );
    driver.wait_until_used();
}

#[test]
fn only_the_guests_own_fields_of_the_configuration_keep_what_it_writes() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    driver.write(reg::VIRTIO_MMIO_CONFIG + 4, 77);
    driver.write(reg::VIRTIO_MMIO_CONFIG + 12, 0xaaaa_aaaa);
    driver.write(reg::VIRTIO_MMIO_CONFIG, 1000);
    driver.write(reg::VIRTIO_MMIO_CONFIG + 8, 1000);
    let config = driver.config();
    assert_eq!((config.actual, config.poison_val), (77, 0xaaaa_aaaa));
    assert_eq!((config.num_pages, config.free_page_hint_cmd_id), (0, 0));
    assert_eq!(subject.device.ignored_accesses(), 2);
    driver.bring_up();
    assert_eq!(driver.config().actual, 0, "after a reset");
}

#[test]
fn a_driver_that_resets_the_device_starts_from_the_beginning() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.driver();
    for _ in 0..3 {
        driver.bring_up();
        for _ in 0..5 {
            driver.add_hint(4 * MIB, 4096);
        }
        driver.kick();
        driver.wait_until_used();
        driver.add_hint(4 * MIB, 4096);
        driver.write(reg::VIRTIO_MMIO_STATUS, 0);
        // After the reset the device does nothing, kicked or not.
        let used = driver.used();
        driver.kick();
        assert_eq!(driver.used(), used);
        driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    }
    assert_eq!(subject.device.lost(), None);
}

#[test]
fn a_driver_that_stops_one_queue_gets_no_more_from_it() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.running_driver();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, HINTS);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    assert_eq!(driver.used() + 1, driver.available());
    subject.device.stop().unwrap();
    assert_eq!(driver.used() + 1, driver.available());
    assert_eq!(subject.device.lost(), None);
}

#[test]
fn queues_outside_guest_memory_only_need_a_reset() {
    let Some(subject) = Subject::new(&guest_ram()) else {
        return;
    };
    let mut driver = subject.driver();
    // In the hole between the regions, across their ends, far away, unaligned, and without a size.
    for (offset, value) in [
        (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 20 * MIB),
        (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 16 * MIB - 2),
        (reg::VIRTIO_MMIO_QUEUE_USED_HIGH, u64::from(u32::MAX)),
        (reg::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3fff),
        (reg::VIRTIO_MMIO_QUEUE_NUM, 0),
        (reg::VIRTIO_MMIO_QUEUE_NUM, 63),
    ] {
        driver.negotiate();
        driver.set_queue_up(HINTS);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        driver.write(offset, value as u32);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(reg::VIRTIO_MMIO_STATUS, 15);
        let status = driver.read(reg::VIRTIO_MMIO_STATUS);
        assert_eq!(status, 0x4f, "register {offset:#x} = {value:#x}");
        subject.device.stop().unwrap();
        subject.device.save().unwrap();
        subject.device.resume();
    }
    driver.bring_up();
    driver.add_hint(4 * MIB, 4096);
    driver.kick();
    driver.wait_until_used();
}
