// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The dirty log: which files are accepted, when it is written, and what is in it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::machine::{HINTS, MEMORY, Machine, USER, WRITE, addresses, copy, memory_file, slot};
use crate::raw::{ADD_MEM_REG, REM_MEM_REG, SET_FEATURES, SET_LOG_BASE, SET_VRING_ADDR, longs};
use crate::rig::eventually;
use crate::rig::guest::{Daemon, Guest, LOG_ALL, MIB, USUAL};

const LOG_BYTES: u64 = 4096;
const VRING_F_LOG: u32 = 1;
const NOTHING: [u64; 0] = [];

fn set_log(machine: &mut Machine, log: &File, size: u64, offset: u64) -> Option<Vec<u8>> {
    let payload = longs(&[size, offset]);
    machine.raw.send(SET_LOG_BASE, 1, &payload, &[copy(log)]);
    machine.raw.answer()
}

fn set_features(machine: &mut Machine, features: u64) -> Option<u64> {
    machine
        .raw
        .order(SET_FEATURES, &features.to_le_bytes(), &[])
}

/// Takes the marked pages out of the log.
fn harvest(log: &File) -> Vec<u64> {
    let marked = marked(log);
    log.write_all_at(&[0; LOG_BYTES as usize], 0).unwrap();
    marked
}

/// As [`harvest`], once `count` pages are marked: a page is marked a moment after it was written.
fn harvest_of(log: &File, count: usize) -> Vec<u64> {
    eventually("the marked pages", || {
        (marked(log).len() >= count).then_some(())
    });
    harvest(log)
}

fn marked(log: &File) -> Vec<u64> {
    let mut bytes = [0; LOG_BYTES as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    spec_testing::bits::set_in(&bytes)
}

fn hint(machine: &Machine) {
    machine.send(HINTS, (8 * MIB, 4096, WRITE, 0));
}

#[test]
fn a_log_that_overflows_or_is_too_small_is_refused_and_the_next_front_end_served() {
    let mut daemon = Daemon::start(&[]);
    let needed = MEMORY / 4096 / 8;
    for (size, offset) in [
        (4096, u64::MAX - 4095),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (u64::MAX - 4096, 4096),
        (0, 0),
        (needed - 1, 0),
        (LOG_BYTES + 1, 0),
        (LOG_BYTES, 4096),
        (LOG_BYTES - 1, 1),
    ] {
        let mut machine = Machine::running(&daemon);
        let log = memory_file(LOG_BYTES);
        assert_eq!(set_log(&mut machine, &log, size, offset), None);
        assert!(daemon.lives(), "{size:#x} {offset:#x}");
    }
    let mut machine = Machine::running(&daemon);
    assert!(set_log(&mut machine, &memory_file(LOG_BYTES), needed, 0).is_some());
    drop(machine);
    Guest::boot(&daemon, USUAL, 3);
}

#[test]
fn logging_starts_stops_and_starts_again_with_the_features() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    let log = memory_file(LOG_BYTES);
    let used = Machine::used_ring(HINTS) / 4096;
    assert!(set_log(&mut machine, &log, LOG_BYTES, 0).is_some());
    hint(&machine);
    assert_eq!(
        harvest(&log),
        NOTHING,
        "nothing is logged before the feature is set"
    );
    for _ in 0..3 {
        set_features(&mut machine, USUAL | LOG_ALL);
        hint(&machine);
        assert_eq!(harvest_of(&log, 1), [used]);
        set_features(&mut machine, USUAL);
        hint(&machine);
        assert_eq!(harvest(&log), NOTHING);
    }
    set_features(&mut machine, USUAL | LOG_ALL);
    let other = memory_file(LOG_BYTES);
    assert!(set_log(&mut machine, &other, LOG_BYTES, 0).is_some());
    hint(&machine);
    assert_eq!((harvest_of(&other, 1), harvest(&log)), (vec![used], vec![]));
}

#[test]
fn a_ring_logs_its_used_ring_where_it_is_told_to() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    let log = memory_file(LOG_BYTES);
    assert!(set_log(&mut machine, &log, LOG_BYTES, 0).is_some());
    let switch = |machine: &mut Machine, flags: u32, at: u64| {
        let payload = addresses(HINTS, flags, Machine::parts(HINTS), at);
        assert_eq!(machine.raw.order(SET_VRING_ADDR, &payload, &[]), Some(0));
    };
    // Outside guest memory, as with an IOMMU.
    let at = 1000 * 4096 - 4;
    switch(&mut machine, VRING_F_LOG, at);
    hint(&machine);
    assert_eq!(
        harvest_of(&log, 2),
        [999, 1000],
        "the pages of the index and the element"
    );
    switch(&mut machine, 0, at);
    hint(&machine);
    assert_eq!(harvest(&log), NOTHING);
    switch(&mut machine, VRING_F_LOG, u64::MAX - 2);
    hint(&machine);
    assert_eq!(harvest(&log), NOTHING, "beyond the end of the log");
    switch(&mut machine, VRING_F_LOG, at);
    set_features(&mut machine, USUAL | LOG_ALL);
    hint(&machine);
    let used = Machine::used_ring(HINTS) / 4096;
    assert_eq!(harvest_of(&log, 3), [used, 999, 1000]);
}

#[test]
fn zero_length_descriptors_are_not_logged() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    let log = memory_file(LOG_BYTES);
    assert!(set_log(&mut machine, &log, LOG_BYTES, 0).is_some());
    set_features(&mut machine, USUAL | LOG_ALL);
    for address in [0, 5000, MEMORY - 1, MEMORY, u64::MAX] {
        machine.send(HINTS, (address, 0, WRITE, 0));
        machine.send(HINTS, (address, 0, 0, 0));
    }
    assert_eq!(harvest_of(&log, 1), [Machine::used_ring(HINTS) / 4096]);
}

#[test]
fn memory_that_is_plugged_in_while_logging_is_logged_and_refused_beyond_the_log() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    let log = memory_file(LOG_BYTES);
    assert!(set_log(&mut machine, &log, LOG_BYTES, 0).is_some());
    set_features(&mut machine, USUAL | LOG_ALL);
    let end = LOG_BYTES * 8 * 4096;
    let file = memory_file(MIB);
    let beyond = slot([end - MIB + 4096, MIB, USER + MEMORY, 0]);
    let add = |machine: &mut Machine, payload: &[u8]| {
        machine.raw.order(ADD_MEM_REG, payload, &[copy(&file)])
    };
    assert_eq!(add(&mut machine, &beyond), Some(1));
    let last = slot([end - MIB, MIB, USER + MEMORY, 0]);
    assert_eq!(add(&mut machine, &last), Some(0));
    // The used ring lies in the new memory.
    let [descriptors, available, _] = Machine::parts(HINTS);
    let payload = addresses(HINTS, 0, [descriptors, available, USER + MEMORY], 0);
    machine.start_at(HINTS, &payload);
    machine.describe(HINTS, 0, (0, 4096, WRITE, 0));
    machine.offer(HINTS, 0);
    machine.kick(HINTS);
    crate::rig::eventually("the new memory to be logged", || {
        // Only read: writing zeros could erase a new mark.
        (marked(&log) == [(end - MIB) / 4096]).then_some(())
    });
    assert_eq!(machine.raw.order(REM_MEM_REG, &last, &[]), Some(0));
    assert_eq!(add(&mut machine, &last), Some(0));
}

#[test]
fn the_log_cannot_be_switched_on_for_less_than_all_memory() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    let log = memory_file(LOG_BYTES);
    let needed = MEMORY / 4096 / 8;
    assert!(set_log(&mut machine, &log, needed, 0).is_some());
    let more = slot([MEMORY, MIB, USER + MEMORY, 0]);
    let file = memory_file(MIB);
    // Accepted while logging is off.
    assert_eq!(
        machine.raw.order(ADD_MEM_REG, &more, &[copy(&file)]),
        Some(0)
    );
    assert_eq!(set_features(&mut machine, USUAL | LOG_ALL), Some(1));
    assert!(set_log(&mut machine, &log, LOG_BYTES, 0).is_some());
    assert_eq!(set_features(&mut machine, USUAL | LOG_ALL), Some(0));
}
