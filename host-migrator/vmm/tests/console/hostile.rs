// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hostile and broken drivers harm only their own guest.

use spec::stamp::Random;
use virtio_bindings::virtio_mmio as reg;

use crate::driver::{
    BUFFER, CONTROL_RECEIVE, CONTROL_TRANSMIT, Descriptor, Driver, INDIRECT, NEXT, RECEIVE, SIZE,
    TRANSMIT, WRITE, base,
};
use crate::rig::{MEMORY, MIB, Subject, eventually, fill, read};
use crate::shared::registers::Registers;

/// DEVICE_NEEDS_RESET
const NEEDS_RESET: u32 = 0x40;
/// A part of memory that nothing else uses.
const FREE: u64 = 8 * MIB;

#[test]
fn useless_buffers_come_back_and_are_counted() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    let bad: [(u32, Descriptor); 8] = [
        (TRANSMIT, (MEMORY - 4, 8, 0, 0)),
        (TRANSMIT, (u64::MAX - 3, 8, 0, 0)),
        (TRANSMIT, (FREE, u32::MAX, 0, 0)),
        (RECEIVE, (MEMORY, 8, WRITE, 0)),
        (RECEIVE, (FREE, 0, WRITE, 0)),
        // A buffer that the device must not write.
        (RECEIVE, (FREE, 8, 0, 0)),
        (CONTROL_TRANSMIT, (FREE, 7, 0, 0)),
        (CONTROL_TRANSMIT, (MEMORY - 1, 8, 0, 0)),
    ];
    for (count, (queue, descriptor)) in (1..).zip(&bad) {
        driver.add(*queue, &[*descriptor]);
        driver.wait_for(*queue);
        eventually("it to be counted", || {
            (subject.device.ignored_accesses() == count).then_some(())
        });
    }
    driver.say(b"still there");
    assert_eq!(read(&host, 11), b"still there");
}

#[test]
fn circular_chains_and_nested_tables_are_cut_off() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    // Each descriptor is its own successor: as many bytes come out as the queue has entries.
    let slot = driver.used(TRANSMIT) % SIZE;
    driver.put(FREE, b"x");
    driver.add(TRANSMIT, &[(FREE, 1, NEXT, slot)]);
    assert_eq!(read(&host, SIZE.into()), vec![b'x'; SIZE.into()]);
    driver.wait_for(TRANSMIT);
    // An indirect table that refers to itself, one whose length is not a multiple of 16 bytes, one outside memory, and
    // one without an end.
    driver.put_descriptor(FREE, &(FREE, 16, INDIRECT, 0));
    for (address, bytes) in [(FREE, 16), (FREE, 17), (MEMORY, 32), (FREE, u32::MAX - 15)] {
        driver.add(TRANSMIT, &[(address, bytes, INDIRECT, 0)]);
        driver.wait_for(TRANSMIT);
    }
    let endless = FREE + MIB;
    driver.put_descriptor(endless, &(FREE, 1, NEXT, 0));
    driver.add(TRANSMIT, &[(endless, 16 * 0xffff, INDIRECT, 0)]);
    read(&host, 0xffff);
    driver.wait_for(TRANSMIT);
    driver.say(b"still there");
    assert_eq!(read(&host, 11), b"still there");
}

#[test]
fn a_chain_that_repeats_nearly_all_memory_is_sent_piece_by_piece() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    const COUNT: u64 = 4;
    for number in 0..COUNT {
        let next = (number + 1) as u16;
        let flags = if next < COUNT as u16 { NEXT } else { 0 };
        driver.put_descriptor(
            FREE + number * 16,
            &(base(TRANSMIT), (8 * MIB) as u32, flags, next),
        );
    }
    driver.add(TRANSMIT, &[(FREE, (COUNT * 16) as u32, INDIRECT, 0)]);
    // Meanwhile the device can be stopped, and everything else works.
    subject.device.stop();
    assert_eq!(driver.used(TRANSMIT), 0);
    subject.device.resume();
    for _ in 0..COUNT * 8 {
        read(&host, MIB as usize);
    }
    driver.wait_for(TRANSMIT);
}

#[test]
fn invalid_rings_stop_the_device_until_it_is_reset() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    for queue in [RECEIVE, TRANSMIT, CONTROL_TRANSMIT] {
        let (mut driver, _host) = subject.joined();
        let index = driver.used(queue).wrapping_sub(1);
        driver.set_available_index(queue, index);
        wait_until_given_up(&driver);
        let interrupts = driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        assert_eq!(interrupts & reg::VIRTIO_MMIO_INT_CONFIG, 2, "queue {queue}");
    }
    // The device looks at this queue only when it has something to send.
    let (mut driver, host) = subject.joined();
    let index = driver.used(CONTROL_RECEIVE).wrapping_sub(1);
    driver.set_available_index(CONTROL_RECEIVE, index);
    drop(host);
    wait_until_given_up(&driver);
    // A head that is not the number of a descriptor.
    let (mut driver, _host) = subject.joined();
    driver.make_available(TRANSMIT, SIZE);
    wait_until_given_up(&driver);
    subject.joined();
}

fn wait_until_given_up(driver: &Driver) {
    eventually("the device to give up", || {
        (driver.read(reg::VIRTIO_MMIO_STATUS) & NEEDS_RESET != 0).then_some(())
    });
}

#[test]
fn queues_outside_memory_are_refused_when_the_driver_is_up() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let driver = subject.driver();
    for (offset, address) in [
        (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, MEMORY),
        (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, MEMORY - 2),
        (reg::VIRTIO_MMIO_QUEUE_USED_LOW, MEMORY - 8),
    ] {
        driver.accept(1 << 32);
        driver.set_queue_up(TRANSMIT, base(TRANSMIT));
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        driver.write(offset, address as u32);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        driver.write(reg::VIRTIO_MMIO_STATUS, 15);
        let status = driver.read(reg::VIRTIO_MMIO_STATUS);
        assert_eq!(status & NEEDS_RESET, NEEDS_RESET, "{offset:#x}");
    }
    subject.joined();
}

#[test]
fn random_descriptors_and_rings_harm_only_their_own_guest() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let mut random = Random::new(7);
    for round in 1..=12 {
        let (mut driver, host) = subject.joined();
        // The guest does not wait for the device, which may have seen little of the rest when it is reset.
        driver.add(TRANSMIT, &[(MEMORY - 4, 8, 0, 0)]);
        eventually("something that makes no sense", || {
            (subject.device.ignored_accesses() >= round).then_some(())
        });
        // The host reads everything that the guest sends, and always has something to send.
        fill(&host);
        let reader = std::thread::spawn(move || {
            host.set_nonblocking(false).unwrap();
            // Ends when the device hangs up.
            let _ = std::io::copy(&mut &host, &mut std::io::sink());
        });
        for _ in 0..40 {
            let queue = random.below(4) as u32;
            for index in 0..u64::from(SIZE) {
                let address = match random.below(4) {
                    0 => random.below(u64::MAX),
                    1 => base(random.below(4) as u32) + random.below(0x3000),
                    _ => FREE + random.below(MIB),
                };
                let magnitude = random.below(33);
                let bytes = random.below(1 << magnitude) as u32;
                // Mostly valid flags and numbers.
                let (flags, next) = (random.below(9) as u16, random.below(10) as u16);
                let at = base(queue) + index * 16;
                driver.put_descriptor(at, &(address, bytes, flags, next));
            }
            driver.make_available(queue, random.below(u64::from(SIZE) + 1) as u16);
            if random.below(10) == 0 {
                driver.set_available_index(queue, random.below(1 << 16) as u16);
            }
        }
        driver.write(reg::VIRTIO_MMIO_STATUS, 0);
        reader.join().unwrap();
    }
    let (mut driver, host) = subject.joined();
    driver.say(b"still there");
    assert_eq!(read(&host, 11), b"still there");
}

#[test]
fn messages_for_a_driver_without_buffers_wait_until_it_offers_some() {
    let Some(subject) = Subject::new() else {
        return;
    };
    let mut driver = subject.driver();
    driver.bring_up_without_buffers();
    for _ in 0..1000 {
        driver.say_ready();
    }
    // Too small for any message: it comes back empty.
    driver.offer(CONTROL_RECEIVE, 7);
    driver.wait_for(CONTROL_RECEIVE);
    assert_eq!(subject.device.ignored_accesses(), 1);
    for _ in 0..SIZE {
        driver.offer(CONTROL_RECEIVE, BUFFER as u32);
    }
    eventually("one message", || {
        (driver.used(CONTROL_RECEIVE) == 2).then_some(())
    });
    driver.say_ready();
    assert_eq!(driver.used(CONTROL_RECEIVE), 2, "each message comes once");
}
