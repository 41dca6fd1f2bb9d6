// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Honest and hostile buffers on the hint queue, and their effects.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::sync::mpsc::{self, TryRecvError};
use std::thread;

use rig::guest::{Daemon, Guest, HINT, MIB, PAGES, POISON, PROTOCOL, USUAL, VERSION_1};
use rig::migrator::Migrator;
use rig::queue::{Buffer, QUEUE_SIZE};
use spec::balloon::{Command, CommandId};
use spec::control::Refusal;
use spec::hint_map::HintPhase;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress};

/// Where hints lie in these tests, away from the queues: 8 MiB.
const FREE: u64 = 8 * MIB;
const FREE_PAGE: u64 = FREE / 4096;

/// A daemon, a guest that has started to hint, and its migrator.
fn in_a_round() -> (Daemon, Guest, Migrator) {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
    guest.start_round(id);
    assert_eq!(migrator.map.phase(), HintPhase::Running);
    (daemon, guest, migrator)
}

#[test]
fn a_whole_migration_with_a_guest_that_acts_as_the_linux_driver() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    assert_eq!(migrator.map.epoch(), 1);
    guest.hints.send(&[Buffer::In(FREE, 4 << 20)]);
    guest.hints.send(&[Buffer::In(FREE + 4 * MIB, 4096)]);
    let stop = guest.hints.command(&[0; 4]);
    guest.hints.send(&[stop]);
    assert_eq!(migrator.map.phase(), HintPhase::Finished);
    assert_eq!(migrator.map.hinted_pages(), 1025);

    let report = migrator.close(1);
    assert_eq!((report.epoch, report.phase), (1, HintPhase::Finished));
    assert_eq!((report.hints, report.pages), (2, 1025));
    assert_eq!((report.stale, report.rejected), (0, 0));
    assert_eq!(migrator.hinted(), [(FREE_PAGE, 1025)]);
    assert_eq!(
        (migrator.map.epoch(), migrator.map.phase()),
        (0, HintPhase::Closed)
    );
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::STOP);

    let second = migrator.open(2);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, second.get());
    migrator.close(2);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::STOP);
    migrator.done();
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    assert_eq!(migrator.map.phase(), HintPhase::Done);
    assert!(guest.is_left_alone());
}

#[test]
fn the_id_stays_published_while_the_guest_hints() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    let id = migrator.status().command_id;
    assert_ne!(id, Command::STOP);
    assert_eq!(guest.config().free_page_hint_cmd_id, id);
}

#[test]
fn hints_queued_before_close_are_in_the_map_when_it_is_answered_and_none_come_later() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    // Without a kick: the device finds these hints only when it looks at the queue.
    for block in 0..4 {
        guest.hints.add(&[Buffer::In(FREE + block * MIB, 1 << 20)]);
    }
    let report = migrator.close(1);
    assert_eq!((report.hints, report.pages), (4, 1024));
    assert_eq!(migrator.hinted(), [(FREE_PAGE, 1024)]);
    guest.hints.wait_until_used();
    guest.hints.send(&[Buffer::In(FREE + 4 * MIB, 1 << 20)]);
    assert_eq!(migrator.hinted(), [(FREE_PAGE, 1024)]);
    assert_eq!(migrator.status().stale, 1);
}

#[test]
fn every_scatter_gather_entry_counts_and_a_command_may_lead_them() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    let hints: Vec<Buffer> = (0..8)
        .map(|page| Buffer::In(FREE + page * 8192, 4096))
        .collect();
    guest.hints.send(&hints);
    assert_eq!(migrator.close(1).hints, 8);
    assert_eq!(migrator.hinted().len(), 8);

    let id = migrator.open(2);
    let mut chain = vec![guest.hints.command(&id.get().to_le_bytes())];
    chain.push(Buffer::In(FREE + MIB, 4096));
    guest.hints.send(&chain);
    let report = migrator.close(2);
    assert_eq!((report.phase, report.hints), (HintPhase::Running, 1));
}

#[test]
fn a_command_spread_over_descriptors_is_still_one() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    let Buffer::Out(address, _) = guest.hints.command(&id.get().to_le_bytes()) else {
        unreachable!("a command's buffer is device-readable");
    };
    guest
        .hints
        .send(&[Buffer::Out(address, 1), Buffer::Out(address + 1, 3)]);
    assert_eq!(migrator.close(1).phase, HintPhase::Running);
}

#[test]
fn only_whole_pages_inside_guest_memory_are_hinted() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    let low_end = 16 * MIB;
    let high = 32 * MIB;
    let map_end = PAGES * 4096;
    for (address, length) in [
        (FREE + 1, 8192),                           // contains one whole page
        (FREE + 4 * 4096, 4097),                    // one page and a byte
        (FREE + 8 * 4096, 4095),                    // none
        (FREE + 9 * 4096 + 1, 8190),                // none
        (FREE + 10 * 4096, 0),                      // nothing
        (low_end - 4096, 8192),                     // half of it in the hole
        (low_end, 4096),                            // in the hole
        (low_end - 4096, (17 * MIB + 4096) as u32), // over the hole, into the second region
        (map_end, 4096),                            // after the end
        (1 << 52, u32::MAX),                        // far beyond memory
        (u64::MAX - 4095, 8192),                    // past the last address
        (u64::MAX, u32::MAX),
    ] {
        guest.hints.send(&[Buffer::In(address, length)]);
    }
    let report = migrator.close(1);
    let status = migrator.status();
    assert_eq!(
        migrator.hinted(),
        [
            (FREE_PAGE + 1, 1),
            (FREE_PAGE + 4, 1),
            (low_end / 4096 - 1, 1),
            (high / 4096, 256)
        ]
    );
    assert_eq!((report.hints, report.pages, report.rejected), (4, 259, 8));
    assert_eq!((status.partial, status.zero_length), (2, 1));
    assert_eq!(status.out_of_range, 7);
}

#[test]
fn a_hint_of_all_addresses_is_cut_to_guest_memory_and_overlaps_count_once() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    guest.hints.send(&[Buffer::In(0, u32::MAX)]);
    guest.hints.send(&[Buffer::In(FREE, 4 << 20)]);
    guest.hints.send(&[Buffer::In(FREE + MIB, 4 << 20)]);
    let report = migrator.close(1);
    assert_eq!(migrator.hinted(), [(0, 4096), (8192, 4096)]);
    assert_eq!((report.hints, report.pages), (3, 8192));
}

#[test]
fn a_thousand_hints_in_one_chain_are_a_thousand_hints() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    let hints: Vec<Buffer> = (0..u64::from(QUEUE_SIZE))
        .map(|page| Buffer::In(FREE + page * 4096, 4096))
        .collect();
    guest.hints.send(&hints);
    let report = migrator.close(1);
    assert_eq!((report.hints, report.pages), (1024, 1024));
    assert_eq!(migrator.status().broken_chains, 0);
}

#[test]
fn a_full_ring_of_single_hints_is_taken_whole_in_one_pass() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    // Without a kick: the whole ring waits until the epoch is closed.
    for page in 0..u64::from(QUEUE_SIZE) {
        guest.hints.add(&[Buffer::In(FREE + page * 4096, 4096)]);
    }
    let report = migrator.close(1);
    assert_eq!((report.hints, report.pages), (1024, 1024));
    assert_eq!(migrator.status().broken_chains, 0);
}

#[test]
fn chains_that_loop_or_share_descriptors_cost_the_device_one_ring_of_work() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    // A circle of descriptors, queued as often as the ring has room.
    for index in 0..QUEUE_SIZE {
        guest
            .hints
            .write_descriptor(index, FREE, 4096, 3, (index + 1) % QUEUE_SIZE);
    }
    for head in 0..QUEUE_SIZE {
        guest.hints.add_head(head);
    }
    guest.hints.kick();
    guest.hints.wait_until_used();
    let report = migrator.close(1);
    assert_eq!((report.hints, report.pages), (1024, 1));
    assert_eq!(migrator.status().broken_chains, 1024);
}

#[test]
fn broken_chains_are_counted_and_the_device_goes_on() {
    let (mut daemon, mut guest, mut migrator) = in_a_round();
    let used = guest.hints.used();
    // Three faults: a next descriptor that does not exist; a readable one after a hint; a head that does not exist.
    guest.hints.write_descriptor(500, FREE, 4096, 3, 5000);
    guest.hints.add_head(500);
    guest
        .hints
        .send(&[Buffer::In(FREE + 8192, 4096), Buffer::Out(FREE, 4)]);
    assert_eq!(migrator.status().broken_chains, 2);
    guest.hints.add_head(QUEUE_SIZE);
    guest.hints.kick();
    rig::eventually("the third broken chain", || {
        (migrator.status().broken_chains == 3).then_some(())
    });
    assert_eq!(
        guest.hints.used(),
        used + 2,
        "a head that does not exist is not given back"
    );
    // An available index that claims more chains than the ring holds.
    guest
        .hints
        .set_available(guest.hints.available().wrapping_add(5000));
    guest.hints.kick();
    rig::eventually("the broken ring", || {
        (migrator.status().broken_chains == 4).then_some(())
    });
    assert_eq!(migrator.close(1).hints, 2);
    assert!(daemon.lives());
}

#[test]
fn commands_of_wrong_size_or_outside_memory_are_counted_and_change_nothing() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1).get().to_le_bytes();
    for bytes in [
        &id[..3],
        &[id, id].concat(),
        &[&id[..], &[0]].concat(),
        &[0; 4096],
    ] {
        let command = guest.hints.command(bytes);
        guest.hints.send(&[command]);
    }
    guest.hints.send(&[Buffer::Out(FREE, 0)]);
    guest.hints.send(&[Buffer::Out(20 * MIB, 4)]);
    guest.hints.send(&[Buffer::Out(u64::MAX, 4)]);
    guest.hints.send(&[Buffer::Out(u64::MAX, u32::MAX)]);
    assert_eq!(migrator.status().bad_commands, 8);
    assert_eq!(migrator.map.phase(), HintPhase::Requested);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    assert_eq!(migrator.close(1).stale, 1);
}

#[test]
fn hints_before_the_start_after_stop_or_under_an_old_id_are_stale() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let hint = Buffer::In(FREE, 4096);
    guest.hints.send(&[hint]);
    let old = migrator.open(1);
    guest.hints.send(&[hint]);
    guest.start_round(old);
    let stop = guest.hints.command(&[0; 4]);
    guest.hints.send(&[stop]);
    guest.hints.send(&[hint]);
    assert_eq!(migrator.close(1).stale, 2);
    let new = migrator.open(2);
    assert_ne!(new, old);
    guest.start_round(old);
    guest.hints.send(&[hint]);
    assert_eq!(migrator.close(2).stale, 1);
    assert_eq!(migrator.status().stale, 4);
    assert_eq!(migrator.status().bad_commands, 1);
    assert!(migrator.hinted().is_empty());
}

#[test]
fn the_hint_queue_has_the_number_that_the_rule_gives_it() {
    // A guest without statistics. Linux then numbers its queues without a gap; the specification keeps the gap.
    for (flags, number) in [
        (&["--once"][..], 2),
        (&["--once", "--queue-numbering", "fixed"], 3),
    ] {
        let daemon = Daemon::start(flags);
        let mut guest = Guest::boot(&daemon, VERSION_1 | HINT | PROTOCOL, number);
        let mut migrator = Migrator::connect(&daemon.control());
        let id = migrator.open(1);
        guest.start_round(id);
        guest.hints.send(&[Buffer::In(FREE, 4096)]);
        assert_eq!(migrator.close(1).hints, 1);
    }
}

#[test]
fn a_guest_that_poisons_with_another_value_than_zero_is_not_asked() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL | POISON, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let write = |guest: &mut Guest, value: u32| {
        let flags = VhostUserConfigFlags::WRITABLE;
        guest
            .front_end
            .set_config(12, flags, &value.to_le_bytes())
            .unwrap();
    };
    write(&mut guest, 0xaaaa_aaaa);
    assert_eq!(migrator.open_refused(1), Refusal::Poison);
    assert_eq!(migrator.status().poison, 0xaaaa_aaaa);
    write(&mut guest, 0);
    migrator.open(1);
}

#[test]
fn the_content_of_hinted_pages_is_left_alone() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    guest
        .memory
        .write_slice(&[0x5a; 4096], GuestAddress(FREE))
        .unwrap();
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    assert_eq!(migrator.close(1).hints, 1);
    let mut page = [0; 4096];
    guest
        .memory
        .read_slice(&mut page, GuestAddress(FREE))
        .unwrap();
    assert_eq!(page, [0x5a; 4096]);
}

#[test]
fn each_hint_comes_back_with_an_interrupt_and_is_in_the_map_by_then() {
    let (_daemon, mut guest, migrator) = in_a_round();
    for block in 0..8 {
        let _ = guest.hints.call.read();
        guest.hints.send(&[Buffer::In(FREE + block * MIB, 1 << 20)]);
        rig::eventually("an interrupt", || guest.hints.call.read().ok());
        assert_eq!(migrator.map.hinted_pages(), (block + 1) * 256);
    }
}

#[test]
fn a_driver_that_asks_for_no_interrupts_gets_none() {
    let (_daemon, mut guest, mut migrator) = in_a_round();
    assert!(guest.hints.call.read().is_ok());
    guest.hints.ask_for_no_interrupts();
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    // The device does all that follows the use of a buffer before it answers this.
    migrator.close(1);
    assert!(guest.hints.call.read().is_err());
}

#[test]
fn no_bit_is_set_between_two_epochs_while_a_guest_hints_without_pause() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let (ids, published) = mpsc::channel::<CommandId>();
    let driver = thread::spawn(move || {
        let mut block = 0;
        loop {
            match published.try_recv() {
                Ok(id) => guest.start_round(id),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {}
            }
            for _ in 0..8 {
                block = (block + 1) % 64;
                guest
                    .hints
                    .add(&[Buffer::In(FREE + block * 8 * 4096, 8 * 4096)]);
            }
            guest.hints.kick();
            guest.hints.wait_until_used();
        }
    });
    for epoch in 1..=50 {
        ids.send(migrator.open(epoch)).unwrap();
        rig::eventually("a hint", || (migrator.map.hinted_pages() > 0).then_some(()));
        let report = migrator.close(epoch);
        let at_close = migrator.hinted();
        let pages: u64 = at_close.iter().map(|(_, count)| count).sum();
        assert_eq!(pages, report.pages);
        let stale = migrator.status().stale;
        rig::eventually("late hints", || {
            (migrator.status().stale > stale).then_some(())
        });
        assert_eq!(migrator.hinted(), at_close);
        for index in 0..migrator.map.bitmap_words() {
            migrator.map.take(index);
        }
    }
    drop(ids);
    driver.join().unwrap();
}
