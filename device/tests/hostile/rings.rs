// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings at wrong places, rings that change while they run, and guests that write invalid data into them.

use crate::machine::{
    HINTS, INDIRECT, INFLATE, MEMORY, Machine, NEXT, RING_SIZE, STATISTICS, USER, WRITE, addresses,
    descriptor_bytes, event, memory_file, slot,
};
use crate::raw::*;
use crate::rig::eventually;
use crate::rig::guest::{Daemon, Guest, MIB, USUAL};

fn stop(machine: &mut Machine, ring: u32) -> u32 {
    let answer = machine.raw.ask(GET_VRING_BASE, &words(&[ring, 0]));
    u32::from_le_bytes(answer[4..].try_into().unwrap())
}

#[test]
fn sizes_that_no_ring_has_are_refused() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    let mut set = |size: u32| {
        machine
            .raw
            .order(SET_VRING_NUM, &words(&[HINTS, size]), &[])
    };
    for size in [0, 3, 63, 1023, 1025, 2048, 32768, 65535, 65536, u32::MAX] {
        assert_eq!(set(size), Some(1), "{size}");
    }
    for size in [1, 2, 64, 1024] {
        assert_eq!(set(size), Some(0), "{size}");
    }
}

#[test]
fn rings_outside_memory_and_misaligned_ones_do_nothing() {
    let mut daemon = Daemon::start(&[]);
    let [descriptors, available, used] = Machine::parts(HINTS);
    let end = USER + MEMORY;
    let places = [
        [end, available, used],
        [descriptors, end, used],
        [descriptors, available, end],
        [0, available, used],
        [u64::MAX - 15, available, used],
        [descriptors + 8, available, used],
        [descriptors, available + 1, used],
        [descriptors, available, used + 2],
        // They begin inside memory and end outside.
        [end - 16, available, used],
        [descriptors, end - 2, used],
        [descriptors, available, end - 4],
    ];
    for parts in places {
        let mut machine = Machine::new(&daemon);
        let payload = addresses(HINTS, 0, parts, 0);
        let taken = machine.raw.order(SET_VRING_ADDR, &payload, &[]);
        if taken == Some(0) {
            machine.start_at(HINTS, &payload);
            for _ in 0..10 {
                machine.kick(HINTS);
                machine.is_answered();
            }
        }
        assert!(daemon.lives(), "{parts:x?}");
    }
    Guest::boot(&daemon, USUAL, 3);
}

#[test]
fn a_ring_over_the_edge_of_its_region_does_not_reach_what_lies_behind() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    // Neighbours in the front end's addresses, with a hole between them in the guest's.
    let file = memory_file(MIB);
    let other = slot([MEMORY + MIB, MIB, USER + MEMORY, 0]);
    let fd = [crate::machine::copy(&file)];
    assert_eq!(machine.raw.order(ADD_MEM_REG, &other, &fd), Some(0));
    let [descriptors, available, _] = Machine::parts(HINTS);
    let edge = USER + MEMORY - 8;
    machine.start_at(
        HINTS,
        &addresses(HINTS, 0, [descriptors, available, edge], 0),
    );
    for head in 0..8 {
        machine.describe(HINTS, head, (0, 4096, WRITE, 0));
        machine.offer(HINTS, head);
        machine.kick(HINTS);
        machine.is_answered();
    }
    let mut bytes = [0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn a_ring_that_runs_cannot_be_changed_and_goes_on() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    let [descriptors, available, used] = Machine::parts(HINTS);
    let moved = addresses(HINTS, 0, [descriptors + 4096, available, used], 0);
    let ring = longs(&[u64::from(HINTS)]);
    let mut refused = |request, payload: &[u8], fds: &[_]| {
        let result = machine.raw.order(request, payload, fds);
        assert_eq!(result, Some(1), "request {request}");
    };
    refused(SET_VRING_NUM, &words(&[HINTS, 128]), &[]);
    refused(SET_VRING_BASE, &words(&[HINTS, 7]), &[]);
    // A refusal changes nothing, so the second attempt is refused, too.
    refused(SET_VRING_ADDR, &moved, &[]);
    refused(SET_VRING_ADDR, &moved, &[]);
    refused(SET_VRING_KICK, &ring, &[event()]);
    let same = addresses(HINTS, 0, Machine::parts(HINTS), 0);
    assert_eq!(machine.raw.order(SET_VRING_ADDR, &same, &[]), Some(0));
    let size = words(&[HINTS, RING_SIZE.into()]);
    assert_eq!(machine.raw.order(SET_VRING_NUM, &size, &[]), Some(0));
    for _ in 0..2 * RING_SIZE {
        machine.send(HINTS, (0, 4096, WRITE, 0));
    }
    assert_eq!(stop(&mut machine, HINTS), 2 * u32::from(RING_SIZE));
    assert_eq!(machine.raw.order(SET_VRING_ADDR, &moved, &[]), Some(0));
}

#[test]
fn there_is_no_ring_beyond_the_last() {
    let mut daemon = Daemon::start(&[]);
    for index in [5, 0xff, 0xffff, u32::MAX] {
        let mut machine = Machine::new(&daemon);
        let parts = addresses(index, 0, Machine::parts(HINTS), 0);
        for (request, payload) in [
            (SET_VRING_NUM, words(&[index, 64])),
            (SET_VRING_ADDR, parts),
            (SET_VRING_BASE, words(&[index, 0])),
            (SET_VRING_ENABLE, words(&[index, 1])),
        ] {
            let result = machine.raw.order(request, &payload, &[]);
            assert_eq!(result, Some(1), "request {request}, ring {index}");
        }
        let number = longs(&[u64::from(index) & 0xff]);
        for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
            assert_eq!(machine.raw.order(request, &number, &[event()]), Some(1));
        }
        machine
            .raw
            .send(GET_VRING_BASE, 1, &words(&[index, 0]), &[]);
        assert!(machine.raw.hangs_up(), "ring {index}");
    }
    assert!(daemon.lives());
}

#[test]
fn endless_chains_are_cut_off() {
    let daemon = Daemon::start(&["--once"]);
    for ring in [INFLATE, STATISTICS, HINTS] {
        let daemon = if ring == INFLATE {
            &daemon
        } else {
            &Daemon::start(&["--once"])
        };
        let mut machine = Machine::new(daemon);
        machine.start(ring);
        let buffer = Machine::buffers(ring);
        let offer = |head: u16| {
            let kept = u16::from(ring == STATISTICS);
            machine.offer(ring, head);
            machine.kick(ring);
            eventually("the chain's return", || {
                (machine.available(ring) - machine.used(ring) <= kept).then_some(())
            });
        };
        for flags in [NEXT, NEXT | WRITE] {
            // To itself, to another one and back, and beyond the table.
            machine.describe(ring, 0, (buffer, 8, flags, 0));
            offer(0);
            machine.describe(ring, 0, (buffer, 8, flags, 1));
            machine.describe(ring, 1, (buffer, 8, flags, 0));
            offer(0);
            machine.describe(ring, 0, (buffer, 8, flags, RING_SIZE));
            offer(0);
            machine.describe(ring, 0, (buffer, u32::MAX, flags, 1));
            offer(0);
        }
        // Indirect tables are not offered. These refer to themselves, to the ring, or to nothing; one has an odd
        // length.
        machine.write(buffer, &descriptor_bytes((buffer, 64, INDIRECT | NEXT, 0)));
        for (address, length) in [
            (buffer, 64),
            (u64::from(ring) * 0x10000, 1024),
            (u64::MAX - 15, 64),
            (MEMORY, 64),
            (buffer, 17),
            (buffer, 0),
            (buffer, u32::MAX - 15),
        ] {
            machine.describe(ring, 0, (address, length, INDIRECT, 0));
            offer(0);
        }
        machine.is_answered();
    }
}

#[test]
fn an_index_that_jumps_further_than_the_ring_is_long_stops_the_ring_only() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::running(&daemon);
    for index in [RING_SIZE + 1, 0x8000, u16::MAX] {
        machine.claim(HINTS, index);
        machine.kick(HINTS);
        machine.is_answered();
        assert_eq!(machine.used(HINTS), 0, "index {index}");
    }
    machine.claim(HINTS, 0);
    machine.send(HINTS, (0, 4096, WRITE, 0));
    assert!(daemon.lives());
}

#[test]
fn invalid_heads_are_skipped() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::running(&daemon);
    for head in [RING_SIZE, 0x7fff, u16::MAX] {
        machine.offer(HINTS, head);
        machine.kick(HINTS);
    }
    machine.is_answered();
    machine.describe(HINTS, 7, (0, 4096, WRITE, 0));
    machine.offer(HINTS, 7);
    machine.kick(HINTS);
    eventually("the good chain's return", || {
        (machine.used(HINTS) == 1).then_some(())
    });
    let element = machine.read(Machine::used_ring(HINTS) + 4, 8);
    assert_eq!(element, words(&[7, 0]));
}

#[test]
fn buffers_on_the_rings_themselves_harm_the_guest_only() {
    let mut daemon = Daemon::start(&[]);
    for ring in [INFLATE, STATISTICS, HINTS] {
        let mut machine = Machine::new(&daemon);
        machine.start(ring);
        let base = u64::from(ring) * 0x10000;
        for (head, at) in [(0, base), (1, base + 0x4000), (2, base + 0x8000)] {
            for flags in [0, WRITE] {
                machine.describe(ring, head, (at, 0x4000, flags, 0));
                machine.offer(ring, head);
                machine.kick(ring);
                machine.is_answered();
            }
        }
    }
    Guest::boot(&daemon, USUAL, 3);
    assert!(daemon.lives());
}

#[test]
fn a_guest_that_inflates_its_own_rings_affects_nobody_else() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::running(&daemon);
    machine.start(INFLATE);
    let pages: Vec<u8> = (0..256u32).flat_map(u32::to_le_bytes).collect();
    let buffer = 8 * MIB;
    machine.write(buffer, &pages);
    machine.describe(INFLATE, 0, (buffer, 1024, 0, 0));
    machine.offer(INFLATE, 0);
    machine.kick(INFLATE);
    eventually("the discard of the rings", || {
        (machine.available(INFLATE) == 0).then_some(())
    });
    machine.is_answered();
    drop(machine);
    Guest::boot(&daemon, USUAL, 3);
    assert!(daemon.lives());
}

#[test]
fn statistics_with_any_tag_are_taken() {
    let mut daemon = Daemon::start(&[]);
    let mut machine = Machine::new(&daemon);
    machine.start(STATISTICS);
    let buffer = Machine::buffers(STATISTICS);
    let tags: Vec<u16> = (0..=u16::MAX).collect();
    for tags in tags.chunks(400) {
        let entries = tags
            .iter()
            .flat_map(|tag| [tag.to_le_bytes().to_vec(), longs(&[u64::MAX])].concat());
        machine.write(buffer, &entries.collect::<Vec<_>>());
        let head = machine.available(STATISTICS) % RING_SIZE;
        let length = tags.len() as u32 * 10;
        machine.describe(STATISTICS, head, (buffer, length, 0, 0));
        machine.offer(STATISTICS, head);
        machine.kick(STATISTICS);
        // The device keeps the newest buffer and gives back the one before.
        let before = machine.available(STATISTICS).wrapping_sub(1);
        eventually("the return of the buffer before", || {
            (machine.used(STATISTICS) == before).then_some(())
        });
    }
    assert_eq!(
        stop(&mut machine, STATISTICS),
        tags.len().div_ceil(400) as u32
    );
    machine.wait_until_used(STATISTICS);
    assert!(daemon.lives());
}
