// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What front ends do to the device: features, configuration, reset, suspend, dirty log.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::net::Shutdown;

use rig::ballooning::DirtyLog;
use rig::guest::{Daemon, Guest, HINT, LOG_ALL, MIB, PAGES, POISON, USUAL};
use rig::migrator::Migrator;
use rig::person::Person;
use rig::queue::{Buffer, QUEUE_SIZE};
use spec::balloon::Command;
use spec::control::{Refusal, Reply, Request};
use spec::hint_map::HintPhase;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress};

const FREE: u64 = 8 * MIB;

#[test]
fn only_features_that_work_are_offered() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::negotiate(&daemon, USUAL, 3);
    let offered = guest.front_end.get_features().unwrap();
    assert_eq!(offered, USUAL | POISON | LOG_ALL);
    assert_eq!(guest.front_end.get_queue_num().unwrap(), 5);
}

#[test]
fn a_guest_writes_its_own_fields_of_the_configuration_and_no_other() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL | POISON, 3);
    let flags = VhostUserConfigFlags::WRITABLE;
    guest.front_end.set_config(0, flags, &[0xff; 16]).unwrap();
    let config = guest.config();
    assert_eq!((config.num_pages, config.free_page_hint_cmd_id), (0, 0));
    assert_eq!((config.actual, config.poison_val), (u32::MAX, u32::MAX));
    guest.front_end.set_config(12, flags, &[0; 8]).unwrap();
    assert_eq!(guest.config().poison_val, 0);
}

#[test]
fn no_configuration_change_is_sent_before_the_rings_run_and_none_is_lost() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::negotiate(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.open_refused(1), Refusal::Stopped);
    migrator.done();
    assert!(guest.is_left_alone());
    guest.hints.start(&mut guest.front_end, 0);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
}

#[test]
fn a_refusal_says_whether_the_guest_has_no_hints_or_the_front_end_no_channel() {
    let daemon = Daemon::start(&["--once"]);
    let guest = Guest::boot(&daemon, USUAL & !HINT, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.open_refused(1), Refusal::NotNegotiated);
    guest.front_end.set_features(USUAL).unwrap();
    migrator.open(1);
    migrator.close(1);
    guest.notices.shutdown(Shutdown::Both).unwrap();
    assert_eq!(migrator.open_refused(2), Refusal::Unreachable);
    assert_eq!(migrator.status().epoch, 0);
    assert_eq!(migrator.map.epoch(), 0);
}

#[test]
fn a_round_that_cannot_start_does_not_take_done_back() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
    // The guest keeps the pages that it has hinted until it reads DONE.
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    guest.notices.shutdown(Shutdown::Both).unwrap();
    migrator.done();
    let mut migrator = Migrator::connect(&daemon.control());
    assert_eq!(migrator.open_refused(1), Refusal::Unreachable);
    assert_eq!(guest.config().free_page_hint_cmd_id, Command::DONE);
    assert_eq!(migrator.map.phase(), HintPhase::Done);
}

#[test]
fn a_change_before_the_channel_exists_is_reported_once_it_does() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    // Cloud Hypervisor enables its rings before it gives the channel.
    guest.notices.shutdown(Shutdown::Both).unwrap();
    let mut person = Person::connect(&daemon.control());
    assert_eq!(person.ask(Request::SetTarget { pages: 5 }), Reply::Ok);
    let told = guest.renew_notices();
    assert!(told, "the change is reported without any work on a queue");
    assert_eq!(guest.config().num_pages, 5);
    // When the front end gives another channel, a change that the guest has not read is reported again. One that it has
    // read is not.
    assert_eq!(person.ask(Request::SetTarget { pages: 6 }), Reply::Ok);
    assert!(guest.renew_notices());
    assert_eq!(guest.config().num_pages, 6);
    assert!(!guest.renew_notices());
}

#[test]
fn a_device_that_is_reset_with_its_rings_running_can_be_set_up_anew() {
    let daemon = Daemon::start(&["--once", "--stats-interval", "1"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut statistics = guest.queue(2);
    statistics.start(&mut guest.front_end, 0);
    statistics.add(&[Buffer::Out(FREE, 10)]);
    statistics.kick();
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    guest.front_end.reset_device().unwrap();
    let mut person = Person::connect(&daemon.control());
    assert!(matches!(
        person.ask(Request::BalloonStatus),
        Reply::BalloonStatus(status) if !status.running
    ));
    // After the reset, neither the rings' memory nor what is queued there belongs to the device.
    let used = (guest.hints.used(), statistics.used());
    guest.hints.add(&[Buffer::In(FREE, 4096)]);
    guest.hints.kick();
    guest.front_end.set_features(USUAL).unwrap();
    let stopped = person.ask(Request::BalloonStatus);
    assert!(matches!(stopped, Reply::BalloonStatus(status) if !status.running));
    assert_eq!((guest.hints.used(), statistics.used()), used);

    // The next driver starts its queues at 0. The front end has not asked where the last driver's were left.
    for queue in [&guest.hints, &statistics] {
        queue.clear_used();
        queue.set_available(0);
    }
    guest.hints = rig::queue::Queue::new(std::sync::Arc::clone(&guest.memory), 3, 0);
    guest.hints.start(&mut guest.front_end, 0);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    assert_eq!(migrator.close(1).hints, 1);
}

#[test]
fn chains_queued_before_a_ring_started_are_done_even_if_the_front_end_skips_them() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    // Linux queues the statistics buffer before the device starts. Cloud Hypervisor then sends the available index as
    // the base.
    let mut statistics = guest.queue(2);
    let sent = [&3u16.to_le_bytes()[..], &77u64.to_le_bytes()].concat();
    guest.memory.write_slice(&sent, GuestAddress(FREE)).unwrap();
    statistics.add(&[Buffer::Out(FREE, 10)]);
    statistics.start(&mut guest.front_end, 1);
    let mut person = Person::connect(&daemon.control());
    let values = rig::eventually("the statistics", || match person.ask(Request::Statistics) {
        Reply::Statistics(statistics) => Some(statistics.values().to_vec()),
        _ => None,
    });
    assert_eq!(values, [(3, 77)]);

    // At a reconnect: two chains are done, one is not.
    let mut inflate = guest.queue(0);
    inflate.start(&mut guest.front_end, 0);
    for page in [0, 1] {
        guest.use_page(FREE + page * 4096);
        inflate.send(&[number(&guest, page)]);
    }
    inflate.stop(&guest.front_end);
    guest.use_page(FREE + 2 * 4096);
    inflate.add(&[number(&guest, 2)]);
    inflate.renew_kick();
    inflate.start(&mut guest.front_end, inflate.available());
    inflate.wait_until_used();
    assert!(!guest.is_in_use(FREE + 2 * 4096));

    // An impossible base is the front end's own fault.
    inflate.stop(&guest.front_end);
    inflate.renew_kick();
    inflate.start(&mut guest.front_end, inflate.available() + QUEUE_SIZE + 1);
    let next = inflate.stop(&guest.front_end);
    assert_eq!(next, inflate.available() + QUEUE_SIZE + 1);
}

/// A buffer with the number of one page, after [`FREE`].
fn number(guest: &Guest, page: u64) -> Buffer {
    let at = FREE + MIB + page * 8;
    let number = (FREE / 4096 + page) as u32;
    guest.memory.write_obj(number, GuestAddress(at)).unwrap();
    Buffer::Out(at, 4)
}

#[test]
fn a_suspended_device_takes_no_hints_and_goes_on_where_it_was() {
    let daemon = Daemon::start(&["--once"]);
    let (mut guest, mut migrator, _) = rig::hinting(&daemon);
    guest.wait_for_change();
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    let next = guest.hints.stop(&guest.front_end);
    assert_eq!(next, guest.hints.available());
    guest.hints.add(&[Buffer::In(FREE + MIB, 4096)]);
    guest.hints.kick();

    let report = migrator.close(1);
    assert_eq!((report.hints, report.phase), (1, HintPhase::Running));
    assert_eq!(migrator.open_refused(2), Refusal::Stopped);
    assert!(
        guest.is_left_alone(),
        "a suspended device sends no messages"
    );

    guest.hints.start(&mut guest.front_end, next);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::STOP);
    guest.hints.wait_until_used();
    assert_eq!(migrator.status().stale, 1);
    assert_eq!(migrator.hinted(), [(FREE / 4096, 1)]);
    migrator.open(2);
}

#[test]
fn a_guest_that_hinted_to_a_device_that_died_is_told_to_take_its_pages_back() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::negotiate(&daemon, USUAL, 3);
    // What the device before had taken.
    guest.hints.add(&[Buffer::In(FREE, 4096)]);
    let next = guest.hints.available();
    guest.hints.start(&mut guest.front_end, next);
    guest.hints.kick();
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    assert!(guest.is_left_alone());

    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, id.get());
}

#[test]
fn a_queue_that_is_stopped_while_it_is_kicked_runs_again_every_time() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    for _ in 0..200 {
        guest.hints.kick();
        let next = guest.hints.stop(&guest.front_end);
        guest.hints.renew_kick();
        guest.hints.start(&mut guest.front_end, next);
        guest.hints.send(&[Buffer::In(FREE, 4096)]);
    }
}

#[test]
fn a_reset_in_mid_round_ends_the_round_and_leaves_its_report() {
    let daemon = Daemon::start(&["--once"]);
    let (mut guest, mut migrator, id) = rig::hinting(&daemon);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    guest.front_end.reset_device().unwrap();
    let next = guest.hints.stop(&guest.front_end);
    guest.front_end.set_features(USUAL).unwrap();
    guest.hints.start(&mut guest.front_end, next);
    assert_eq!(guest.config().free_page_hint_cmd_id, Command::STOP);
    assert_eq!(migrator.map.phase(), HintPhase::Closed);
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(FREE + MIB, 4096)]);
    assert_eq!(migrator.open_refused(2), Refusal::EpochOpen);
    let report = migrator.close(1);
    assert_eq!((report.hints, report.stale), (1, 1));
    assert_eq!(migrator.hinted(), [(FREE / 4096, 1)]);
    migrator.open(2);
}

#[test]
fn turning_the_dirty_log_on_is_no_reset() {
    let daemon = Daemon::start(&["--once"]);
    let (mut guest, mut migrator, _) = rig::hinting(&daemon);
    guest.front_end.set_features(USUAL | LOG_ALL).unwrap();
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    assert_eq!(migrator.close(1).hints, 1);
}

#[test]
fn the_dirty_log_has_the_used_ring_and_no_hinted_page() {
    let daemon = Daemon::start(&["--once"]);
    let (mut guest, mut migrator, _) = rig::hinting(&daemon);

    let log = DirtyLog::start(&mut guest.front_end, USUAL, PAGES);
    guest.hints.send(&[Buffer::In(FREE, 4 << 20)]);
    assert_eq!(migrator.close(1).pages, 1024);
    assert_eq!(log.pages(), [guest.hints.used_page()]);
}

#[test]
fn memory_that_is_plugged_in_later_is_guest_memory_too() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::negotiate(&daemon, USUAL, 3);
    let table = rig::queue::memory_table(&guest.memory);
    guest.front_end.set_mem_table(&table[..1]).unwrap();
    guest.hints.start(&mut guest.front_end, 0);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    guest.start_round(id);
    let hint = Buffer::In(40 * MIB, 4096);
    guest.hints.send(&[hint]);
    guest.front_end.add_mem_region(&table[1]).unwrap();
    guest.hints.send(&[hint]);
    guest.front_end.remove_mem_region(&table[1]).unwrap();
    guest.hints.send(&[hint]);
    let report = migrator.close(1);
    assert_eq!((report.hints, report.rejected), (1, 2));
}

#[test]
fn a_statistics_buffer_is_kept_until_the_queue_stops() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let mut statistics = guest.queue(2);
    statistics.start(&mut guest.front_end, 0);
    statistics.add(&[Buffer::Out(FREE, 40)]);
    statistics.add(&[Buffer::Out(FREE, 40)]);
    statistics.kick();
    rig::eventually("the older buffer's return", || {
        (statistics.used() == 1).then_some(())
    });
    assert_eq!(statistics.stop(&guest.front_end), 2);
    assert_eq!(statistics.used(), 2);
}

#[test]
fn inflate_and_deflate_buffers_come_back() {
    let daemon = Daemon::start(&["--once"]);
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    for index in [0, 1] {
        let mut queue = guest.queue(index);
        queue.start(&mut guest.front_end, 0);
        queue.send(&[Buffer::Out(FREE, 1024)]);
        assert!(queue.call.read().is_ok(), "the guest is interrupted");
    }
}
