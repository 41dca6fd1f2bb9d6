// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration needs: the state, the dirty log, and a device that stops when it is told to.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use host_migrator::{DirtyLog, MigrationBitmap};
use reference_vmm::own_writes::OwnWritesLog;
use reference_vmm::virtio::StateError;
use reference_vmm::virtio::console::{ConsoleError, ConsoleState};
use spec::PAGE_SIZE;
use virtio_bindings::virtio_mmio as reg;

use crate::driver::{
    BUFFER, CONTROL_RECEIVE, CONTROL_TRANSMIT, RECEIVE, SIZE, TRANSMIT, base, buffer,
};
use crate::rig::{Subject, pattern, read};
use crate::shared::registers::Registers;

#[test]
fn the_destination_goes_on_where_the_source_stood_with_a_connection_of_its_own() {
    let Some(mut source) = Subject::new() else {
        return;
    };
    let (mut driver, mut host) = source.joined();
    driver.offer(RECEIVE, BUFFER as u32);
    host.write_all(b"before").unwrap();
    assert_eq!(driver.listen(), b"before");
    driver.say(b"bye");
    assert_eq!(read(&host, 3), b"bye");
    driver.wait_for(TRANSMIT);
    source.device.stop();
    // Sent while the device is stopped. The destination passes it to its own host, or drops it while no host is
    // connected.
    driver.say(b"on the way");
    driver.offer(RECEIVE, BUFFER as u32);
    let state = source.device.save().unwrap();
    let bytes = postcard::to_allocvec(&state).unwrap();

    let state: ConsoleState = postcard::from_bytes(&bytes).unwrap();
    let destination = Subject::in_memory(&source.memory).unwrap();
    destination.device.load(&state).unwrap();
    let mut driver = driver.moved_to(&destination.device);
    assert_eq!(
        driver.used(TRANSMIT),
        1,
        "the device must not run before it is told to"
    );
    destination.device.resume();
    driver.wait_for_host(false);
    let mut host = destination.host.accept();
    driver.wait_for_host(true);
    driver.wait_for(TRANSMIT);
    // The guest's end was never closed.
    host.write_all(b"after").unwrap();
    assert_eq!(driver.listen(), b"after");
    driver.say(b"here again");
    let mut heard = read(&host, 10);
    if heard == *b"on the way" {
        heard = read(&host, 10);
    }
    assert_eq!(heard, b"here again");
}

#[test]
fn a_chain_that_was_sent_in_part_goes_on_with_its_rest() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    let piece = pattern(0x4000);
    let mut said = 0;
    while said - driver.used(TRANSMIT) < 8 || {
        thread::sleep(std::time::Duration::from_millis(20));
        said - driver.used(TRANSMIT) < 8
    } {
        driver.say(&piece);
        said += 1;
    }
    // A socket takes a part of a piece rather than wait for room for all of it.
    subject.device.stop();
    let state = subject.device.save().unwrap();
    assert!((state.taken as usize) < piece.len());
    subject.device.resume();
    for number in 0..said {
        assert_eq!(read(&host, piece.len()), piece, "piece {number}");
    }
}

#[test]
fn the_devices_writes_are_in_the_log_of_the_vmms_own_writes() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, mut host) = subject.joined();
    let mut log = OwnWritesLog::new(Arc::clone(subject.memory.own()));
    log.start().unwrap();
    let bitmap = MigrationBitmap::new(subject.memory.ram().bitmap_pages());
    let mut harvest = |what: &str, expected: &[u64]| {
        subject.device.stop();
        log.harvest(&bitmap).unwrap();
        subject.device.resume();
        let found: Vec<u64> = (0..bitmap.pages())
            .filter(|p| bitmap.contains(*p))
            .collect();
        let expected: Vec<u64> = expected.iter().map(|gpa| gpa / PAGE_SIZE).collect();
        assert_eq!(found, expected, "{what}");
        for index in 0..bitmap.word_count() {
            bitmap.claim(index);
        }
    };
    let used = |queue| base(queue) + 2 * BUFFER;
    driver.say(b"a word");
    driver.wait_for(TRANSMIT);
    read(&host, 6);
    harvest("the used ring", &[used(TRANSMIT)]);
    driver.offer(RECEIVE, 0x2000);
    host.write_all(&[7; 0x1800]).unwrap();
    assert_eq!(driver.listen().len(), 0x1800);
    let at = buffer(RECEIVE, 0);
    harvest("a buffer", &[used(RECEIVE), at, at + PAGE_SIZE]);
    let told = buffer(CONTROL_RECEIVE, driver.used(CONTROL_RECEIVE) % SIZE);
    drop(host);
    driver.wait_for_host(false);
    subject.device.stop();
    log.harvest(&bitmap).unwrap();
    for gpa in [told, used(CONTROL_RECEIVE)] {
        assert!(bitmap.contains(gpa / PAGE_SIZE), "a message, {gpa:#x}");
    }
    assert!(!bitmap.contains(used(CONTROL_TRANSMIT) / PAGE_SIZE));
}

#[test]
fn a_stopped_device_writes_no_byte_however_busy_it_was() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (mut driver, host) = subject.joined();
    let ending = Arc::new(AtomicBool::new(false));
    let (writer, end) = (host.try_clone().unwrap(), Arc::clone(&ending));
    let busy = thread::spawn(move || {
        while !end.load(Ordering::Relaxed) {
            let _ = (&writer).write(&[1; 4096]);
        }
    });
    let mut log = OwnWritesLog::new(Arc::clone(subject.memory.own()));
    let bitmap = MigrationBitmap::new(subject.memory.ram().bitmap_pages());
    for _ in 0..200 {
        driver.offer(RECEIVE, BUFFER as u32);
        driver.listen();
        driver.offer(RECEIVE, BUFFER as u32);
        subject.device.stop();
        // Nothing may be written from here on.
        log.start().unwrap();
        let used = driver.used(RECEIVE);
        thread::yield_now();
        assert_eq!(log.harvest(&bitmap).unwrap(), 0);
        assert_eq!(driver.used(RECEIVE), used);
        subject.device.save().unwrap();
        subject.device.resume();
        driver.listen();
    }
    ending.store(true, Ordering::Relaxed);
    drop(host);
    subject.device.stop();
    driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    busy.join().unwrap();
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_so_is_one_for_a_device_in_use() {
    let Some(mut subject) = Subject::new() else {
        return;
    };
    let (driver, _host) = subject.joined();
    assert!(matches!(
        subject.device.save(),
        Err(ConsoleError::NotStopped)
    ));
    subject.device.stop();
    let state = subject.device.save().unwrap();
    assert!(matches!(
        subject.device.load(&state),
        Err(ConsoleError::InUse)
    ));
    let fresh = Subject::in_memory(&subject.memory).unwrap();
    let spoilt = |spoil: fn(&mut ConsoleState)| {
        let mut state = state.clone();
        spoil(&mut state);
        fresh.device.load(&state)
    };
    let queue = spoilt(|state| state.virtio.registers.queues[1].used = u64::MAX - 7);
    assert!(matches!(
        queue,
        Err(ConsoleError::State(StateError::Queue { index: 1, .. }))
    ));
    let features = spoilt(|state| state.virtio.registers.driver_features |= 1 << 20);
    assert!(matches!(
        features,
        Err(ConsoleError::State(StateError::Features { .. }))
    ));
    let count = spoilt(|state| state.virtio.registers.queues[4].ready = true);
    assert!(matches!(
        count,
        Err(ConsoleError::State(StateError::QueueCount { index: 4, .. }))
    ));
    // Numbers that only a hostile source sends. They harm only the guest.
    spoilt(|state| {
        state.taken = u32::MAX;
        state.virtio.bases = [9; 5];
    })
    .unwrap();
    fresh.device.resume();
    driver
        .moved_to(&fresh.device)
        .write(reg::VIRTIO_MMIO_STATUS, 0);
}
