// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes between the guest and the host, and ends that open, close or do not read.

use std::io::{Read, Write};

use virtio_bindings::virtio_mmio as reg;

use crate::driver::{BUFFER, CONTROL_RECEIVE, RECEIVE, SIZE, TRANSMIT};
use crate::rig::{Subject, eventually, fill, pattern, read};
use crate::shared::registers::Registers;

#[test]
fn a_driver_finds_one_named_port_which_is_open_while_the_host_is_connected() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let driver = subject.driver();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_ID), 3);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_CONFIG + 4), 1, "ports");
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 4);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert!(
        !subject.host.is_called(),
        "the port does not connect before the guest opens it"
    );
    subject.joined();
    assert_eq!(subject.device.ignored_accesses(), 0);
}

#[test]
fn bytes_go_both_ways_and_none_is_lost_or_changed() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, mut host) = subject.joined();
    let said = pattern(100_000);
    for part in said.chunks(7001) {
        driver.say(part);
        assert_eq!(read(&host, part.len()), part);
    }
    driver.wait_for(TRANSMIT);
    let mut heard = Vec::new();
    host.write_all(&said[..50_000]).unwrap();
    while heard.len() < 50_000 {
        driver.offer(RECEIVE, BUFFER as u32);
        heard.extend(driver.listen());
    }
    assert_eq!(heard, said[..50_000]);
}

#[test]
fn a_host_that_does_not_read_stops_the_guests_buffers_and_nothing_else() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, mut host) = subject.joined();
    let piece = pattern(0x4000);
    let mut said = 0;
    // A socket takes a bounded number of bytes. Then the guest's ring fills up and stays full.
    eventually("the host's socket to be full", || {
        if said - u32::from(driver.used(TRANSMIT)) < u32::from(SIZE) {
            driver.say(&piece);
            said += 1;
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        (said - u32::from(driver.used(TRANSMIT)) == u32::from(SIZE)).then_some(())
    });
    // The other direction and the registers still work.
    host.write_all(b"are you there").unwrap();
    driver.offer(RECEIVE, BUFFER as u32);
    assert_eq!(driver.listen(), b"are you there");
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 15);
    for number in 0..said {
        assert_eq!(read(&host, piece.len()), piece, "piece {number}");
    }
    driver.wait_for(TRANSMIT);
}

#[test]
fn a_guest_that_does_not_read_leaves_the_hosts_bytes_in_the_hosts_socket() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    let sent = fill(&host);
    // The device has not taken a byte, and takes none later.
    assert_eq!(fill(&host), 0);
    driver.say(b"I am here");
    host.set_nonblocking(false).unwrap();
    assert_eq!(read(&host, 9), b"I am here");
    let mut heard = 0;
    while heard < sent {
        driver.offer(RECEIVE, BUFFER as u32);
        heard += driver.listen().len();
    }
    assert_eq!(heard, sent);
}

#[test]
fn a_guest_that_has_not_opened_the_port_gets_no_bytes() {
    let Some(subject) = Subject::new() else {
        return;
    };
    let mut driver = subject.driver();
    driver.bring_up();
    driver.add_port();
    let mut host = subject.host.accept();
    driver.wait_for_host(true);
    driver.offer(RECEIVE, BUFFER as u32);
    host.write_all(b"who is there").unwrap();
    // The device takes what the guest sends in the same turn, so a byte for the guest would show by now.
    driver.say(b"nobody");
    assert_eq!(read(&host, 6), b"nobody");
    assert_eq!(driver.used(RECEIVE), 0);
    driver.open_port(true);
    assert_eq!(driver.listen(), b"who is there");
}

#[test]
fn the_guest_learns_each_time_the_host_disconnects_or_reconnects() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    subject.host.go();
    drop(host);
    driver.wait_for_host(false);
    // Without a connected host, bytes are dropped and the guest's buffer comes back.
    driver.say(b"to nobody");
    driver.wait_for(TRANSMIT);
    subject.host.come();
    let host = subject.host.accept();
    driver.wait_for_host(true);
    driver.say(b"to somebody");
    assert_eq!(read(&host, 11), b"to somebody");
}

#[test]
fn a_program_that_opens_the_guests_end_again_gets_a_new_connection() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, mut host) = subject.joined();
    host.write_all(b"for the one before").unwrap();
    driver.open_port(false);
    assert_eq!(
        host.read(&mut [0]).unwrap_or(0),
        0,
        "the old connection ends"
    );
    driver.wait_for_host(false);
    let mut host = subject.host.accept();
    driver.wait_for_host(true);
    driver.open_port(true);
    host.write_all(b"welcome").unwrap();
    driver.offer(RECEIVE, BUFFER as u32);
    assert_eq!(driver.listen(), b"welcome");
}

#[test]
fn a_driver_that_resets_the_device_starts_again() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    for _ in 0..3 {
        let (mut driver, host) = subject.joined();
        driver.say(b"again");
        assert_eq!(read(&host, 5), b"again");
        driver.write(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!((&host).read(&mut [0]).unwrap(), 0, "the connection ends");
        assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 0);
        let used = driver.used(CONTROL_RECEIVE);
        driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, CONTROL_RECEIVE);
        assert_eq!(
            driver.used(CONTROL_RECEIVE),
            used,
            "a device does nothing after a reset"
        );
    }
}
