// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver against rust-vmm's device side of the virtqueue.

mod device;
mod rings;

use device::{Buffer, Device, Handle, RINGS_GPA};
use lacuna_balloon_driver::balloon::MAX_HINT_PAGES;
use lacuna_balloon_driver::mmio::status;
use lacuna_balloon_driver::{Balloon, DmaRegion, ProbeError, RoundError};
use spec::PageRange;
use spec::balloon::{Command, CommandId, feature};
use virtio_queue::QueueT;

/// The hint queue's number if the driver does not use statistics: inflate, deflate, hints.
const HINTS: usize = 2;

fn pages(first: u64, count: u64) -> PageRange {
    PageRange::new(first, count).expect("not empty")
}

fn probe(device: &Handle, rings: DmaRegion) -> Result<Balloon<Handle>, ProbeError> {
    Balloon::new(device.clone(), rings, None)
}

#[test]
fn a_round_reaches_the_device_as_its_id_its_runs_and_stop() {
    let (device, mut driver) = Handle::with_driver(1024);
    let id = CommandId::FIRST;
    driver.begin_round(id).unwrap();
    driver.hint(pages(0x100, 1)).unwrap();
    driver.hint(pages(0x10_0000, MAX_HINT_PAGES)).unwrap();
    driver.end_round().unwrap();
    let expected = [
        Buffer::Word(id.get()),
        Buffer::Hint {
            address: 0x10_0000,
            bytes: 0x1000,
        },
        Buffer::Hint {
            address: 0x1_0000_0000,
            bytes: 4 << 20,
        },
        Buffer::Word(Command::STOP),
    ];
    assert_eq!(device.serve(HINTS, usize::MAX), expected);
}

#[test]
fn the_driver_takes_hinting_alone_and_numbers_the_queues_without_gaps() {
    let (device, driver) = Handle::with_driver(256);
    let taken = 1 << feature::VERSION_1 | 1 << feature::FREE_PAGE_HINT;
    assert_eq!(driver.features(), taken);
    let device = device.look();
    assert_eq!(device.taken, taken);
    assert_ne!(device.status & status::DRIVER_OK, 0);
    let ready: Vec<bool> = device.queues.iter().map(|queue| queue.ready()).collect();
    assert_eq!(ready, [true, true, true, false, false]);
    assert_eq!(device.queues[HINTS].size(), 256);
    assert!(device.queues[0].desc_table() >= RINGS_GPA);
}

#[test]
fn the_poison_value_is_written_only_with_its_feature() {
    for (offered, expected) in [(true, 0xaa), (false, 0)] {
        let (device, rings) = Handle::new();
        if !offered {
            device.change().offered &= !(1 << feature::PAGE_POISON);
        }
        let driver = Balloon::new(device.clone(), rings, Some(0xaa)).unwrap();
        let taken = driver.features() & (1 << feature::PAGE_POISON) != 0;
        assert_eq!(taken, offered);
        assert_eq!(device.look().config.poison_val, expected);
    }
}

#[test]
fn a_full_ring_refuses_a_hint_until_the_device_has_used_a_buffer() {
    let (device, mut driver) = Handle::with_driver(4);
    driver.begin_round(CommandId::FIRST).unwrap();
    for page in 0..3 {
        driver.hint(pages(page, 1)).unwrap();
    }
    assert_eq!(driver.hint(pages(3, 1)), Err(RoundError::Full));
    assert_eq!(driver.end_round(), Err(RoundError::Full));
    assert_eq!(device.serve(HINTS, 1).len(), 1);
    driver.hint(pages(3, 1)).unwrap();
    assert_eq!(driver.hint(pages(4, 1)), Err(RoundError::Full));
}

#[test]
fn no_hint_is_lost_or_repeated_when_the_ring_indices_wrap() {
    let (device, mut driver) = Handle::with_driver(64);
    driver.begin_round(CommandId::FIRST).unwrap();
    let mut seen = device.serve(HINTS, 1);
    for page in 0..70_000 {
        while driver.hint(pages(page, 1)) == Err(RoundError::Full) {
            // An odd number, so that batches are never aligned with the ring.
            seen.extend(device.serve(HINTS, 37));
        }
    }
    seen.extend(device.serve(HINTS, usize::MAX));
    let expected = (0..70_000).map(|page| Buffer::Hint {
        address: page * 4096,
        bytes: 4096,
    });
    assert!(seen.into_iter().skip(1).eq(expected));
}

#[test]
fn a_round_keeps_its_id_while_a_later_one_is_queued_behind_it() {
    let (device, mut driver) = Handle::with_driver(1024);
    let first = CommandId::FIRST;
    for id in [first, first.next()] {
        driver.begin_round(id).unwrap();
        driver.end_round().unwrap();
    }
    let expected = [
        first.get(),
        Command::STOP,
        first.next().get(),
        Command::STOP,
    ];
    assert_eq!(
        device.serve(HINTS, usize::MAX),
        expected.map(Buffer::Word),
        "a hint of the first round must not look like one of the second"
    );
}

#[test]
fn hints_belong_to_a_round_and_have_a_limit() {
    let (_, mut driver) = Handle::with_driver(1024);
    assert_eq!(driver.hint(pages(1, 1)), Err(RoundError::NotOpen));
    assert_eq!(driver.end_round(), Err(RoundError::NotOpen));
    driver.begin_round(CommandId::FIRST).unwrap();
    let again = driver.begin_round(CommandId::FIRST.next());
    assert_eq!(again, Err(RoundError::Open));
    let too_long = pages(0, MAX_HINT_PAGES + 1);
    assert_eq!(driver.hint(too_long), Err(RoundError::Range));
    assert_eq!(driver.hint(pages(1 << 52, 1)), Err(RoundError::Range));
}

#[test]
fn poll_returns_each_change_once() {
    let (device, mut driver) = Handle::with_driver(1024);
    assert_eq!(driver.poll(), Some(Command::Stop), "the state at the start");
    assert_eq!(driver.poll(), None);
    device.command(CommandId::FIRST.get());
    assert_eq!(driver.poll(), Some(Command::Start(CommandId::FIRST)));
    assert_eq!(driver.poll(), None);
    device.command(CommandId::FIRST.get());
    assert_eq!(driver.poll(), None, "another field has changed");
    device.command(Command::DONE);
    assert_eq!(driver.poll(), Some(Command::Done));
}

#[test]
fn a_request_from_before_the_drivers_start_is_found() {
    let (device, rings) = Handle::new();
    device.change().config.free_page_hint_cmd_id = CommandId::FIRST.get();
    let mut driver = probe(&device, rings).unwrap();
    assert_eq!(driver.poll(), Some(Command::Start(CommandId::FIRST)));
}

#[test]
fn the_device_is_notified_when_it_wants_to_be() {
    let (device, mut driver) = Handle::with_driver(1024);
    driver.begin_round(CommandId::FIRST).unwrap();
    driver.poll();
    assert_eq!(device.look().notified, [HINTS as u32]);
    driver.poll();
    assert_eq!(device.look().notified.len(), 1, "nothing new in the queue");
    device.want_notifications(HINTS, false);
    driver.end_round().unwrap();
    assert_eq!(device.look().notified.len(), 1);
    device.want_notifications(HINTS, true);
    driver.begin_round(CommandId::FIRST.next()).unwrap();
    driver.end_round().unwrap();
    assert_eq!(device.look().notified.len(), 2);
}

#[test]
fn a_device_that_returns_a_buffer_it_does_not_have_is_not_used_any_more() {
    // The first buffer's descriptor again; one past the table; one past every table.
    for descriptor in [3, 4, u32::MAX] {
        let (device, mut driver) = Handle::with_driver(4);
        driver.begin_round(CommandId::FIRST).unwrap();
        for page in 0..3 {
            driver.hint(pages(page, 1)).unwrap();
        }
        device.return_descriptor(HINTS, 3);
        device.return_descriptor(HINTS, descriptor);
        assert_eq!(driver.hint(pages(3, 1)), Err(RoundError::Broken));
        assert_eq!(driver.end_round(), Err(RoundError::Broken));
    }
}

#[test]
fn a_device_without_hinting_is_refused_and_left_alone() {
    type Change = fn(&mut Device);
    let cases: [(Change, ProbeError); 5] = [
        (|device| device.magic = 0, ProbeError::NoDevice),
        (|device| device.id = 0, ProbeError::NoDevice),
        (|device| device.id = 2, ProbeError::NotABalloon(2)),
        (|device| device.offered = 1, ProbeError::NoHinting(1)),
        (|device| device.queue_max = 0, ProbeError::NoQueue(0)),
    ];
    for (change, expected) in cases {
        let (device, rings) = Handle::new();
        change(&mut device.change());
        assert_eq!(probe(&device, rings).err(), Some(expected));
        assert_eq!(device.look().status & status::DRIVER_OK, 0);
    }
}

#[test]
fn rings_that_do_not_fit_their_memory_are_refused() {
    let (device, rings) = Handle::new();
    let (short, _) = rings.split(512).unwrap();
    assert_eq!(probe(&device, short).err(), Some(ProbeError::NoMemory));
    assert_eq!(device.look().status, status::FAILED);
}

#[test]
fn a_dropped_driver_leaves_the_device_reset() {
    let (device, driver) = Handle::with_driver(1024);
    drop(driver);
    assert_eq!(device.look().status, 0);
}
