// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The register file as a driver uses it.

use spec::balloon::Config;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use super::*;

const BALLOON: DeviceType = DeviceType {
    id: VIRTIO_ID_BALLOON,
    driver_words: &[Config::ACTUAL, Config::POISON],
};

const FEATURES: u64 = 1 << 32 | 1 << 29 | 0b11111;
const CONFIG: [u8; CONFIG_SIZE] = [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

fn device() -> Transport {
    // Bits 26 and 30 are vhost-user's own, 34 and 40 would change the transport.
    let back_end = FEATURES | 1 << 26 | 1 << 30 | 1 << 34 | 1 << 40;
    Transport::new(BALLOON, back_end, 5, CONFIG)
}

fn read(device: &Transport, offset: u32) -> u32 {
    let mut data = [0; 4];
    device.read(u64::from(offset), &mut data);
    u32::from_le_bytes(data)
}

fn write(device: &mut Transport, offset: u32, value: u32) -> Effect {
    device.write(u64::from(offset), &value.to_le_bytes())
}

fn driver_features(device: &mut Transport, features: u64) {
    write(device, reg::VIRTIO_MMIO_STATUS, 1);
    write(device, reg::VIRTIO_MMIO_STATUS, 3);
    for half in [1, 0] {
        write(device, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        let value = (features >> (32 * half)) as u32;
        write(device, reg::VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
}

/// A driver up to FEATURES_OK.
fn negotiated() -> Transport {
    let mut device = device();
    driver_features(&mut device, FEATURES);
    let effect = write(&mut device, reg::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(effect, Effect::Negotiate(FEATURES));
    device.accept_features();
    device
}

#[test]
fn a_driver_recognises_a_modern_balloon() {
    let device = device();
    assert_eq!(read(&device, reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_DEVICE_ID), 5);
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(read(&device, offset), u32::MAX);
    }
}

#[test]
fn features_of_vhost_user_and_of_other_transports_are_not_offered() {
    let mut device = device();
    let low = read(&device, reg::VIRTIO_MMIO_DEVICE_FEATURES);
    write(&mut device, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    let high = read(&device, reg::VIRTIO_MMIO_DEVICE_FEATURES);
    assert_eq!(u64::from(high) << 32 | u64::from(low), FEATURES);
    write(&mut device, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn features_ok_shows_only_after_the_back_end_accepted() {
    let mut device = device();
    driver_features(&mut device, FEATURES);
    write(&mut device, reg::VIRTIO_MMIO_STATUS, 11);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_STATUS), 3);
    device.accept_features();
    assert_eq!(read(&device, reg::VIRTIO_MMIO_STATUS), 11);
}

#[test]
fn features_that_were_not_offered_or_a_legacy_driver_are_refused() {
    for features in [FEATURES | 1 << 7, FEATURES & !(1 << 32), 0] {
        let mut device = device();
        driver_features(&mut device, features);
        assert_eq!(
            write(&mut device, reg::VIRTIO_MMIO_STATUS, 11),
            Effect::None
        );
        assert_eq!(device.ignored(), 1);
    }
}

#[test]
fn features_do_not_change_after_features_ok() {
    let mut device = negotiated();
    write(&mut device, reg::VIRTIO_MMIO_DRIVER_FEATURES, 0);
    assert_eq!(device.registers().driver_features, FEATURES);
    assert_eq!(device.ignored(), 1);
}

#[test]
fn driver_ok_without_features_ok_is_ignored() {
    let mut device = device();
    assert_eq!(write(&mut device, reg::VIRTIO_MMIO_STATUS, 7), Effect::None);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_STATUS), 0);
}

#[test]
fn a_driver_can_clear_status_bits_only_by_a_reset() {
    let mut device = negotiated();
    assert_eq!(write(&mut device, reg::VIRTIO_MMIO_STATUS, 3), Effect::None);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_STATUS), 11);
    assert_eq!(
        write(&mut device, reg::VIRTIO_MMIO_STATUS, 0),
        Effect::Reset
    );
    assert_eq!(read(&device, reg::VIRTIO_MMIO_STATUS), 0);
    assert_eq!(device.registers().driver_features, 0);
}

#[test]
fn a_queue_keeps_what_the_driver_wrote_and_freezes_when_it_is_ready() {
    let mut device = negotiated();
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_SEL, 3);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 1024);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_QUEUE_READY), 0);
    for (offset, value) in [
        (reg::VIRTIO_MMIO_QUEUE_NUM, 128),
        (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000),
        (reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
        (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000),
        (reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 2),
        (reg::VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000),
        (reg::VIRTIO_MMIO_QUEUE_USED_HIGH, 3),
        (reg::VIRTIO_MMIO_QUEUE_READY, 1),
    ] {
        assert_eq!(write(&mut device, offset, value), Effect::None);
    }
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x9000);
    let queue = Queue {
        size: 128,
        ready: true,
        descriptors: 0x1_0000_1000,
        available: 0x2_0000_2000,
        used: 0x3_0000_3000,
    };
    assert_eq!(device.ready_queues(), [(3, queue)]);
    assert_eq!(device.ignored(), 1);
}

#[test]
fn a_queue_can_be_stopped_but_not_started_while_the_driver_runs() {
    let mut device = negotiated();
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_SEL, 2);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(
        write(&mut device, reg::VIRTIO_MMIO_STATUS, 15),
        Effect::Start
    );
    assert_eq!(
        write(&mut device, reg::VIRTIO_MMIO_QUEUE_READY, 0),
        Effect::StopQueue(2)
    );
    assert_eq!(
        write(&mut device, reg::VIRTIO_MMIO_QUEUE_READY, 1),
        Effect::None
    );
    assert_eq!(read(&device, reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_that_do_not_exist_read_as_absent() {
    let mut device = Transport::new(BALLOON, FEATURES, 3, CONFIG);
    for index in [3, 5, u32::MAX] {
        write(&mut device, reg::VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(read(&device, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(
            write(&mut device, reg::VIRTIO_MMIO_QUEUE_READY, 1),
            Effect::None
        );
        assert_eq!(
            write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, index),
            Effect::None
        );
    }
    assert_eq!(device.ignored(), 6);
    assert_eq!(
        write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 2),
        Effect::Notify(2)
    );
}

#[test]
fn a_changed_configuration_is_announced_until_the_driver_acknowledges() {
    let mut device = negotiated();
    let generation = read(&device, reg::VIRTIO_MMIO_CONFIG_GENERATION);
    assert!(
        !device.change_config([9; CONFIG_SIZE]),
        "the driver is not up"
    );
    assert_ne!(
        read(&device, reg::VIRTIO_MMIO_CONFIG_GENERATION),
        generation
    );
    write(&mut device, reg::VIRTIO_MMIO_STATUS, 15);
    assert!(device.must_interrupt());
    assert_eq!(read(&device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    write(&mut device, reg::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert_eq!(read(&device, reg::VIRTIO_MMIO_CONFIG + 8), 0x0909_0909);
}

#[test]
fn only_the_drivers_words_of_the_configuration_are_written() {
    let mut device = device();
    for (at, len, expected) in [
        (4, 4, Some(4)),
        (12, 4, Some(12)),
        (13, 2, Some(13)),
        (0, 4, None),
        (8, 4, None),
        (6, 4, None),
        (4, 8, None),
        (16, 4, None),
        (4, 0, None),
    ] {
        assert_eq!(device.config_write(0x100 + at, len), expected, "{at} {len}");
    }
    assert_eq!(device.config_write(0xfc, 4), None);
    assert_eq!(device.config_write(u64::MAX, 4), None);
    assert_eq!(device.ignored(), 8);
}

#[test]
fn no_access_of_any_width_or_offset_panics() {
    let mut device = negotiated();
    let mut number = 1u64;
    for _ in 0..200_000 {
        // A multiplicative generator (Knuth's MMIX constants): any spread of values will do.
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let offset = match number >> 62 {
            0 => number >> 2,
            _ => number >> 32 & 0x1ff & !3,
        };
        let width = (number >> 24) as usize % 10;
        let mut data = [(number >> 40) as u8 & 0x8f, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        device.write(offset, &data[..width]);
        device.config_write(offset, width);
        device.read(offset, &mut data[..width]);
    }
}
