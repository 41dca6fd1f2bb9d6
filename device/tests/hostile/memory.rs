// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Invalid memory tables, and regions that come and go.

use crate::machine::{
    HINTS, INFLATE, MEMORY, Machine, USER, WRITE, copy, memory_file, slot, table,
};
use crate::raw::{ADD_MEM_REG, GET_MAX_MEM_SLOTS, REM_MEM_REG, Raw, SET_MEM_TABLE, open_in};
use crate::rig::guest::{Daemon, MIB};

#[test]
fn an_invalid_table_is_refused_and_a_valid_one_accepted_after_it() {
    let daemon = Daemon::start(&["--once"]);
    let mut raw = Raw::negotiate(&daemon);
    let good = [0, MEMORY, USER, 0];
    let one = |region: [u64; 4]| vec![region];
    let tables: [Vec<[u64; 4]>; 10] = [
        one([0, 0, USER, 0]),
        one([0, MEMORY + 1, USER, 0]),
        one([0, MEMORY, USER, 4096]),
        one([0, 4096, USER, u64::MAX - 4095]),
        one([0, u64::MAX, 0, 0]),
        one([u64::MAX - 4095, 8192, USER, 0]),
        one([0, 8192, u64::MAX - 4095, 0]),
        vec![good, good],
        vec![good, [MEMORY - 4096, MEMORY, USER + MEMORY, 0]],
        vec![[MEMORY, MEMORY, USER, 0], [0, MEMORY + 4096, USER, 0]],
    ];
    for regions in tables {
        let fds: Vec<_> = regions.iter().map(|_| memory_file(MEMORY).into()).collect();
        let result = raw.order(SET_MEM_TABLE, &table(&regions), &fds);
        assert_eq!(result, Some(1), "{regions:x?}");
    }
    let file = || memory_file(MEMORY).into();
    assert_eq!(raw.order(SET_MEM_TABLE, &table(&[good]), &[]), Some(1));
    let two = table(&[good, [MEMORY, MEMORY, USER + MEMORY, 0]]);
    assert_eq!(raw.order(SET_MEM_TABLE, &two, &[file()]), Some(1));
    let three = [file(), file(), file()];
    assert_eq!(raw.order(SET_MEM_TABLE, &two, &three), Some(1));
    assert_eq!(raw.order(SET_MEM_TABLE, &two, &three[1..]), Some(0));
}

#[test]
fn memory_that_the_kernel_does_not_map_ends_only_the_connection() {
    let mut daemon = Daemon::start(&[]);
    for region in [[0, 4096, USER, 1], [0, 1 << 62, USER, 0]] {
        let mut raw = Raw::negotiate(&daemon);
        let file = memory_file(i64::MAX as u64);
        let payload = table(&[region]);
        assert_eq!(raw.order(SET_MEM_TABLE, &payload, &[copy(&file)]), Some(1));
        assert!(raw.hangs_up());
    }
    Raw::negotiate(&daemon);
    assert!(daemon.lives());
}

#[test]
fn an_overlapping_region_cannot_be_added_and_an_unknown_one_cannot_be_removed() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    let file = memory_file(MIB);
    for region in [
        [0, MIB, USER, 0],
        [MEMORY - 4096, MIB, USER + MEMORY, 0],
        [MEMORY, MIB + 1, USER + MEMORY, 0],
        [MEMORY, 0, USER + MEMORY, 0],
        [u64::MAX - 4095, MIB, USER + MEMORY, 0],
    ] {
        let result = machine
            .raw
            .order(ADD_MEM_REG, &slot(region), &[copy(&file)]);
        assert_eq!(result, Some(1), "{region:x?}");
    }
    let good = slot([MEMORY, MIB, USER + MEMORY, 0]);
    assert_eq!(machine.raw.order(ADD_MEM_REG, &good, &[]), Some(1));
    let two = [copy(&file), copy(&file)];
    assert_eq!(machine.raw.order(ADD_MEM_REG, &good, &two), Some(1));
    assert_eq!(machine.raw.order(ADD_MEM_REG, &good, &two[1..]), Some(0));
    for region in [
        [MEMORY, MIB - 4096, USER + MEMORY, 0],
        [MEMORY, MIB, USER, 0],
        [MEMORY + 4096, MIB, USER + MEMORY, 0],
    ] {
        assert_eq!(machine.raw.order(REM_MEM_REG, &slot(region), &[]), Some(1));
    }
    // The file descriptor that old front ends send is closed.
    let fds = open_in(&daemon)[0];
    if fds == 0 {
        // Mappings are unreadable here, and the test has said so.
        return;
    }
    assert_eq!(machine.raw.order(REM_MEM_REG, &good, &two[1..]), Some(0));
    machine.is_answered();
    assert!(open_in(&daemon)[0] < fds);
    assert_eq!(machine.raw.order(REM_MEM_REG, &good, &[]), Some(1));
}

#[test]
fn there_are_as_many_slots_as_the_device_says() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    let slots = machine.raw.ask(GET_MAX_MEM_SLOTS, &[]);
    let slots = u64::from_le_bytes(slots.try_into().unwrap());
    let file = memory_file(4096);
    let region = |number: u64| slot([number * MEMORY, 4096, USER + number * MEMORY, 0]);
    for number in 1..slots {
        let result = machine
            .raw
            .order(ADD_MEM_REG, &region(number), &[copy(&file)]);
        assert_eq!(result, Some(0), "slot {number} of {slots}");
    }
    let result = machine
        .raw
        .order(ADD_MEM_REG, &region(slots), &[copy(&file)]);
    assert_eq!(result, Some(1));
    for number in 1..slots {
        assert_eq!(
            machine.raw.order(REM_MEM_REG, &region(number), &[]),
            Some(0)
        );
    }
}

#[test]
fn a_region_that_is_removed_is_unmapped_when_the_answer_comes_and_never_touched_again() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    machine.start(INFLATE);
    let mapped = open_in(&daemon)[1];
    if mapped == 0 {
        // Mappings are unreadable here, and the test has said so.
        return;
    }
    let file = memory_file(MIB);
    let plugged = slot([MEMORY, MIB, USER + MEMORY, 0]);
    for round in 0..20u8 {
        let fd = [copy(&file)];
        assert_eq!(machine.raw.order(ADD_MEM_REG, &plugged, &fd), Some(0));
        assert_eq!(open_in(&daemon)[1], mapped + 1);
        machine.send(HINTS, (MEMORY, 4096, WRITE, 0));
        // Queued before the region is removed, and read after it.
        machine.describe(HINTS, 63, (MEMORY, MIB as u32, WRITE, 0));
        machine.offer(HINTS, 63);
        let pages: Vec<u8> = (0..256u32)
            .flat_map(|page| ((MEMORY / 4096) as u32 + page).to_le_bytes())
            .collect();
        let buffer = Machine::buffers(INFLATE);
        machine.write(buffer, &pages);
        machine.describe(INFLATE, 5, (buffer, 1024, 0, 0));
        machine.offer(INFLATE, 5);
        assert_eq!(machine.raw.order(REM_MEM_REG, &plugged, &[]), Some(0));
        assert_eq!(open_in(&daemon)[1], mapped, "round {round}");
        std::os::unix::fs::FileExt::write_all_at(&file, &[round + 1; 4096], 0).unwrap();
        machine.kick(HINTS);
        machine.kick(INFLATE);
        machine.wait_until_used(HINTS);
        machine.wait_until_used(INFLATE);
        let mut bytes = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert_eq!(bytes, [round + 1; 4096], "nothing is discarded");
    }
}

#[test]
fn a_ring_whose_memory_is_removed_does_nothing_until_it_is_made_anew() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::running(&daemon);
    let all = slot([0, MEMORY, USER, 0]);
    assert_eq!(machine.raw.order(REM_MEM_REG, &all, &[]), Some(0));
    machine.describe(HINTS, 0, (0, 4096, WRITE, 0));
    machine.offer(HINTS, 0);
    machine.kick(HINTS);
    machine.is_answered();
    assert_eq!(machine.used(HINTS), 0);
    let fd = [copy(&machine.file)];
    assert_eq!(machine.raw.order(ADD_MEM_REG, &all, &fd), Some(0));
    machine.kick(HINTS);
    machine.wait_until_used(HINTS);
    assert!(daemon.lives());
}
