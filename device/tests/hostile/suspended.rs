// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings that stop are drained. A device whose rings are all stopped writes nothing and sends nothing.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::machine::{HINTS, INFLATE, MEMORY, Machine, RING_SIZE, STATISTICS, WRITE, copy};
use crate::raw::*;
use crate::rig::eventually;
use crate::rig::guest::{Daemon, MIB};
use crate::rig::migrator::Migrator;
use crate::rig::person::Person;
use spec::control::{Reply, Request};

fn stop(machine: &mut Machine, ring: u32) -> u16 {
    let answer = machine.raw.ask(GET_VRING_BASE, &words(&[ring, 0]));
    u32::from_le_bytes(answer[4..].try_into().unwrap()) as u16
}

/// Queues a page for the balloon without a kick.
fn queue_inflate(machine: &Machine, page: u32) {
    let head = machine.available(INFLATE) % RING_SIZE;
    let buffer = Machine::buffers(INFLATE) + u64::from(head) * 4;
    machine.write(buffer, &page.to_le_bytes());
    machine.describe(INFLATE, head, (buffer, 4, 0, 0));
    machine.offer(INFLATE, head);
}

fn interrupts(machine: &Machine, ring: u32) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(&machine.calls[ring as usize], &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

#[test]
fn queued_chains_are_done_before_a_ring_stops() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    for round in 0..10 {
        machine.start(INFLATE);
        for page in 0..20 {
            machine.write(8 * MIB + page * 4096, &[1]);
            queue_inflate(&machine, 2048 + page as u32);
        }
        let next = stop(&mut machine, INFLATE);
        assert_eq!(next, machine.available(INFLATE), "round {round}");
        assert_eq!(machine.used(INFLATE), next);
        assert_ne!(interrupts(&machine, INFLATE), 0);
        for page in 0..20 {
            assert_eq!(machine.read(8 * MIB + page * 4096, 1), [0], "page {page}");
        }
    }
}

#[test]
fn a_disabled_ring_rests_and_goes_on_where_it_was() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    machine.start(INFLATE);
    let enable = |machine: &mut Machine, on: u32| {
        let payload = words(&[INFLATE, on]);
        assert_eq!(machine.raw.order(SET_VRING_ENABLE, &payload, &[]), Some(0));
    };
    enable(&mut machine, 0);
    machine.write(8 * MIB, &[1]);
    queue_inflate(&machine, 2048);
    machine.kick(INFLATE);
    machine.is_answered();
    assert_eq!(machine.used(INFLATE), 0);
    enable(&mut machine, 1);
    machine.wait_until_used(INFLATE);
    enable(&mut machine, 0);
    machine.write(8 * MIB, &[1]);
    queue_inflate(&machine, 2048);
    machine.kick(INFLATE);
    // Disabled and then stopped, as QEMU does it.
    assert_eq!(stop(&mut machine, INFLATE), 1);
    assert_eq!(
        (machine.used(INFLATE), machine.read(8 * MIB, 1)),
        (1, vec![1])
    );
    // A ring that is enabled but not started does not run.
    enable(&mut machine, 1);
    machine.is_answered();
    assert_eq!(machine.used(INFLATE), 1);
    let base = words(&[INFLATE, 1]);
    let ring = longs(&[INFLATE.into()]);
    assert_eq!(machine.raw.order(SET_VRING_BASE, &base, &[]), Some(0));
    let kick = [crate::machine::event()];
    assert_eq!(machine.raw.order(SET_VRING_KICK, &ring, &kick), Some(0));
    machine.wait_until_used(INFLATE);
    assert_eq!(machine.read(8 * MIB, 1), [0]);
}

#[test]
fn the_statistics_buffer_comes_back_from_a_ring_that_was_disabled_first() {
    let daemon = Daemon::start(&["--once"]);
    let mut machine = Machine::new(&daemon);
    machine.start(STATISTICS);
    // One statistic, with tag 4, that shows when the device has taken the buffer.
    let statistic = [&4u16.to_le_bytes()[..], &77u64.to_le_bytes()].concat();
    machine.write(Machine::buffers(STATISTICS), &statistic);
    machine.describe(STATISTICS, 9, (Machine::buffers(STATISTICS), 10, 0, 0));
    machine.offer(STATISTICS, 9);
    machine.kick(STATISTICS);
    let mut person = Person::connect(&daemon.control());
    eventually("the statistics", || {
        matches!(person.ask(Request::Statistics), Reply::Statistics(_)).then_some(())
    });
    assert_eq!(machine.used(STATISTICS), 0, "the device keeps the buffer");
    let disable = words(&[STATISTICS, 0]);
    assert_eq!(machine.raw.order(SET_VRING_ENABLE, &disable, &[]), Some(0));
    assert_eq!(stop(&mut machine, STATISTICS), 1);
    assert_eq!(
        machine.used(STATISTICS),
        1,
        "the device gives back as many buffers as it took"
    );
    // A second stop has nothing to give back.
    assert_eq!(stop(&mut machine, STATISTICS), 1);
    assert_eq!(machine.used(STATISTICS), 1);
}

#[test]
fn a_suspended_device_writes_nothing_and_sends_nothing() {
    let daemon = Daemon::start(&["--once", "--stats-interval", "1"]);
    let mut machine = Machine::new(&daemon);
    let (notices, channel) = UnixStream::pair().unwrap();
    let channel = [copy(&channel)];
    assert_eq!(
        machine.raw.order(SET_BACKEND_REQ_FD, &[], &channel),
        Some(0)
    );
    for ring in [INFLATE, STATISTICS, HINTS] {
        machine.start(ring);
    }
    machine.describe(STATISTICS, 0, (Machine::buffers(STATISTICS), 10, 0, 0));
    machine.offer(STATISTICS, 0);
    machine.kick(STATISTICS);
    for ring in [INFLATE, STATISTICS, HINTS] {
        stop(&mut machine, ring);
        interrupts(&machine, ring);
    }
    notices.set_nonblocking(true).unwrap();
    while (&notices).read(&mut [0; 4096]).is_ok() {}

    // Everything that could make it write or send: kicks, queued buffers, the migrator, time.
    for ring in [INFLATE, STATISTICS, HINTS] {
        machine.describe(ring, 1, (Machine::buffers(ring), 8, WRITE, 0));
        machine.offer(ring, 1);
    }
    let before = machine.read(0, MEMORY as usize);
    let mut migrator = Migrator::connect(&daemon.control());
    let quiet = std::time::Instant::now() + Duration::from_millis(2500);
    while std::time::Instant::now() < quiet {
        for ring in [INFLATE, STATISTICS, HINTS] {
            machine.kick(ring);
        }
        migrator.ask(Request::Open { epoch: 1 });
        migrator.ask(Request::Done);
        machine.is_answered();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        machine.read(0, MEMORY as usize) == before,
        "guest memory is unchanged"
    );
    assert!((&notices).read(&mut [0; 12]).is_err(), "no message is sent");
    for ring in [INFLATE, STATISTICS, HINTS] {
        assert_eq!(
            interrupts(&machine, ring),
            0,
            "ring {ring} does not interrupt the guest"
        );
    }
    // When it runs again, the guest gets what it missed.
    machine.start_again(HINTS);
    notices.set_nonblocking(false).unwrap();
    notices
        .set_read_timeout(Some(crate::rig::PATIENCE))
        .unwrap();
    let mut message = [0; 12];
    (&notices).read_exact(&mut message).unwrap();
    assert_eq!(message[..4], 2u32.to_le_bytes());
}
