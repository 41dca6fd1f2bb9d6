// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bugs of QEMU's virtio-balloon that were fixed since 2019. These tests show that this device does not have them.
//!
//! Each test names the commit that fixed the bug. Other tests cover these:
//!
//! | commit | where |
//! |---|---|
//! | dd8eeb9671 DONE when a migration fails | `control::the_guest_is_told_done_when_its_migrator_hangs_up_or_sends_garbage` |
//! | 20a4da0f23 an old id must not start anything | `hints::hints_before_the_start_after_stop_or_under_an_old_id_are_stale` |
//! | 0fe7245d8b every scatter-gather entry counts | `hints::every_scatter_gather_entry_counts_and_a_command_may_lead_them`, `reporting::every_range_of_a_report_is_discarded` |
//! | d3f1f940eb used length 0 | every test here: `Queue::wait_until_used` checks it |
//! | b27b323914, ed48c59875, a8cd64d488, 9a7ca8a7c9 host pages larger than 4 KiB | `inflate::a_huge_page_is_discarded_once_all_its_pages_are_in_the_balloon_and_no_neighbour_is`, and against a model in `balloon::discard` |
//! | bff1050a56 unknown statistics tags | `statistics::all_tags_and_invalid_buffers_do_no_harm` |
//! | 1456e90653 stale statistics after a reset | `statistics::statistics_do_not_outlive_their_driver` |
//! | fd51e54fa1 DONE at the destination | `front_end::a_device_that_migrated_says_done_and_never_repeats_an_id` |
//! | 243a9284a9 names in the state are for ever | `balloon::device_state`: version 1 is read as it was written |
//! | 3143577d6a hinted pages are not sent again | the lanes, which count pages; e919402b9e: `benches/inflate.rs` |
//!
//! Not possible here: 1a83e0b9c4, 63268c4970, f3321554ef, c13221b56f (locks of QEMU's bitmap), f63192b054 (its bottom
//! halves), 0e600663e4 (PCI vectors), 1a37352277 (its bulk stage), bc85aae420 (in the front end).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use rig::ballooning::{Ballooning, FREE, NUMBERS, pfn};
use rig::guest::{
    Daemon, Guest, HIGH, HINT, LOW, MIB, PAGES, POISON, PROTOCOL, REPORTING, STATS, USUAL,
    VERSION_1, guest_memory,
};
use rig::migrator::Migrator;
use rig::queue::Buffer;
use spec::balloon::Config;
use spec::control::Request;
use spec::hint_map::HintPhase;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

/// Commit ae440bd14c: an element with buffers of both kinds was freed twice.
#[test]
fn a_chain_with_both_kinds_of_buffers_comes_back_once_from_every_queue() {
    let mut it = Ballooning::boot(&["--free-page-reporting"], USUAL | REPORTING);
    let numbers = it.numbers(&[pfn(FREE)]);
    for index in [3, 0, 1, 4] {
        let mut queue = it.guest.queue(index);
        queue.set_available(0);
        queue.stop(&it.guest.front_end);
        queue.start(&mut it.guest.front_end, 0);
        queue.send(&[numbers, Buffer::In(FREE, 4096), numbers]);
        assert_eq!(queue.used(), 1, "queue {index}");
    }
}

/// Commit 2bbadb08ce: the size of the configuration space depended on features. Here it never does.
#[test]
fn the_configuration_space_has_16_bytes_whatever_was_negotiated() {
    let daemon = Daemon::start(&[]);
    for features in [VERSION_1 | PROTOCOL, USUAL, USUAL | POISON] {
        let mut guest = Guest::negotiate(&daemon, features, 3);
        let flags = VhostUserConfigFlags::WRITABLE;
        for (offset, size) in [(0, 8), (0, 12), (0, 16), (12, 4)] {
            let buffer = vec![0; size as usize];
            let (_, bytes) = guest
                .front_end
                .get_config(offset, size, flags, &buffer)
                .unwrap();
            assert_eq!(bytes.len(), size as usize);
        }
    }
}

/// Commit ffa207d082: page numbers from 8 TiB on were taken as negative.
#[test]
fn a_page_number_with_its_highest_bit_set_is_a_page_above_8_tib() {
    let above = 8u64 << 40;
    let memory = guest_memory(&[LOW, (above, 4 * MIB)]);
    let mut it = Ballooning::boot_with(&[], USUAL, memory);
    it.guest.use_page(above);
    it.guest.use_page(above + 4096);
    assert_eq!(pfn(above + 4096), 0x8000_0001);
    it.inflate(&[0x8000_0001]);
    assert!(it.guest.is_in_use(above) && !it.guest.is_in_use(above + 4096));
    it.deflate(&[0x8000_0001]);
    assert_eq!(it.status().ballooned_pages, 0);
    assert_eq!(it.status().out_of_range, 0);
}

/// Commits 483f13524b and 1b47b37c33: notes on a host page that was only partly in the balloon were used after the
/// guest had taken it out, or after a reset.
#[test]
fn notes_on_host_pages_do_not_outlive_a_deflate_or_a_reset() {
    let mut it = Ballooning::boot(&[], USUAL);
    it.inflate(&[pfn(FREE), pfn(FREE) + 2]);
    it.deflate(&[pfn(FREE)]);
    it.guest.use_page(FREE);
    it.inflate(&[pfn(FREE) + 1]);
    assert!(it.guest.is_in_use(FREE));
    it.guest.front_end.reset_device().unwrap();
    assert_eq!(it.status().ballooned_pages, 0);
}

/// Commit 12fc8903a8: a guest used the hint queue before the host had set anything up for it.
#[test]
fn hints_that_nobody_asked_for_come_back_and_change_nothing() {
    let mut it = Ballooning::boot(&[], USUAL);
    // If a queue is not empty when the device first sees it, another device had it before. Stopping waits for the
    // device.
    it.guest.hints.start(&mut it.guest.front_end, 0);
    it.guest.hints.kick();
    it.guest.hints.stop(&it.guest.front_end);
    it.guest.hints.start(&mut it.guest.front_end, 0);
    let start = it.guest.hints.command(&0x8000_0001u32.to_le_bytes());
    it.guest.hints.send(&[start]);
    it.guest.hints.send(&[Buffer::In(FREE, 4 << 20)]);
    let state = it.person.hints(Request::HintState);
    assert_eq!((state.phase, state.hints), (HintPhase::Closed, 0));
    assert!(it.daemon.lives());
}

/// Commits 49b01711b8 and 105aef9c94: the teardown followed the guest's features, not the host's.
#[test]
fn a_guest_that_took_no_feature_leaves_as_cleanly_as_one_that_took_all() {
    let mut daemon = Daemon::start(&["--free-page-reporting"]);
    let all = USUAL | POISON | REPORTING;
    for features in [VERSION_1 | PROTOCOL, all, VERSION_1 | PROTOCOL, all] {
        let stream = daemon.connect();
        let memory = guest_memory(&[LOW, HIGH]);
        let mut it = Ballooning::boot_over(daemon, stream, features, memory);
        it.guest.use_page(FREE);
        it.inflate(&[pfn(FREE)]);
        assert!(
            !it.guest.is_in_use(FREE),
            "the rings run, so the page is discarded"
        );
        assert_eq!(
            it.status().ballooned_pages,
            1,
            "only this guest's page is in the balloon"
        );
        it.guest.front_end.reset_device().unwrap();
        daemon = it.daemon;
    }
    // The daemon also serves a guest that hints, and keeps nothing of the guests before.
    let (mut guest, mut migrator, _) = rig::hinting(&daemon);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    assert_eq!(migrator.close(1).pages, 1);
    assert!(daemon.lives());
}

/// Commit 7483cbbaf8: the guest's poison value has a field, which a new driver may set again.
#[test]
fn the_poison_value_is_the_guests_to_write_and_a_reset_clears_it() {
    let daemon = Daemon::start(&[]);
    let mut guest = Guest::negotiate(&daemon, USUAL | POISON, 3);
    let flags = VhostUserConfigFlags::WRITABLE;
    for value in [0xaaaa_aaaa_u32, 0, 7] {
        guest
            .front_end
            .set_config(Config::POISON as u32, flags, &value.to_le_bytes())
            .unwrap();
        assert_eq!(guest.config().poison_val, value);
    }
    guest.front_end.reset_device().unwrap();
    assert_eq!(guest.config().poison_val, 0);
}

/// Commits 1a8e44a89f and 06df2e692a: memory was discarded unknown to a migration. Here the migration learns of it from
/// the dirty log, and switching the log on while the balloon is at work loses nothing.
#[test]
fn the_dirty_log_has_everything_that_is_discarded_during_a_migration() {
    let mut it = Ballooning::boot(&["--free-page-reporting"], USUAL | REPORTING);
    let mut reports = it.guest.queue(4);
    reports.start(&mut it.guest.front_end, 0);
    let log = it.log(PAGES);
    it.inflate(&[pfn(FREE) + 1, pfn(FREE) + 3]);
    reports.send(&[Buffer::In(HIGH.0, 8192)]);
    let dirty = log.pages();
    let free = FREE / 4096;
    for page in [free + 1, free + 3, HIGH.0 / 4096, HIGH.0 / 4096 + 1] {
        assert!(dirty.contains(&page), "page {page:#x}");
    }
    assert!(!dirty.contains(&free) && !dirty.contains(&(free + 2)));
    assert!(
        !dirty.contains(&(NUMBERS / 4096)),
        "memory that was only read is not dirty"
    );
}

/// Commit 71828ffc43 (posted): the specification and Linux number queues differently. Without the statistics feature
/// Linux gives the number of its queue to the next one.
#[test]
fn a_queue_of_a_feature_that_was_not_taken_has_no_number() {
    let daemon = Daemon::start(&["--free-page-reporting"]);
    let features = VERSION_1 | PROTOCOL | HINT | REPORTING;
    let mut guest = Guest::boot(&daemon, features, 2);
    let mut reports = guest.queue(3);
    reports.start(&mut guest.front_end, 0);
    let mut migrator = Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    guest.start_round(id);
    guest.hints.send(&[Buffer::In(FREE, 4096)]);
    guest.use_page(FREE + MIB);
    reports.send(&[Buffer::In(FREE + MIB, 4096)]);
    assert!(!guest.is_in_use(FREE + MIB));
    assert_eq!(migrator.close(1).pages, 1);

    let mut guest = {
        drop(guest);
        Guest::negotiate(&daemon, VERSION_1 | PROTOCOL | STATS | REPORTING, 3)
    };
    let mut reports = guest.queue(3);
    reports.start(&mut guest.front_end, 0);
    guest.use_page(FREE);
    reports.send(&[Buffer::In(FREE, 4096)]);
    assert!(!guest.is_in_use(FREE));
}

/// e2b-dev/infra#3001: hints that were queued when the guest was paused were taken after it went on.
#[test]
fn hints_that_are_queued_when_the_guest_stops_are_not_taken_when_it_goes_on() {
    let daemon = Daemon::start(&[]);
    let (mut guest, mut migrator, _) = rig::hinting(&daemon);
    let next = guest.hints.stop(&guest.front_end);
    guest.hints.add(&[Buffer::In(FREE, 4096)]);
    guest.hints.kick();
    assert_eq!(migrator.close(1).hints, 0);
    guest.hints.renew_kick();
    guest.hints.start(&mut guest.front_end, next);
    guest.hints.kick();
    guest.hints.wait_until_used();
    assert_eq!((migrator.hinted(), migrator.status().stale), (vec![], 1));
}
