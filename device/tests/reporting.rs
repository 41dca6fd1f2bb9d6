// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Honest and hostile reports of free pages, and their effects.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use rig::ballooning::{Ballooning, FREE, pfn};
use rig::guest::{Guest, HIGH, LOW, MIB, PAGES, POISON, REPORTING, USUAL, guest_memory};
use rig::migrator::Migrator;
use rig::queue::{Buffer, Queue};
use spec::balloon::{CommandId, Config};
use spec::control::{PageSet, Refusal, Request};
use spec::hint_map::HintPhase;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

/// A guest whose reporting queue, number 4, runs.
fn reporting(features: u64) -> (Ballooning, Queue) {
    let mut it = Ballooning::boot(&["--free-page-reporting"], USUAL | REPORTING | features);
    let reports = it.guest.queue(4);
    reports.start(&mut it.guest.front_end, 0);
    (it, reports)
}

fn use_pages(it: &Ballooning, first: u64, count: u64) {
    (0..count).for_each(|page| it.guest.use_page(first + page * 4096));
}

/// Whether each of the pages from `first` on is in use.
fn in_use(it: &Ballooning, first: u64, count: u64) -> Vec<bool> {
    (0..count)
        .map(|page| it.guest.is_in_use(first + page * 4096))
        .collect()
}

#[test]
fn every_range_of_a_report_is_discarded() {
    let (mut it, mut reports) = reporting(0);
    use_pages(&it, FREE, 8);
    it.guest.use_page(HIGH.0);
    // Two adjacent ranges, and one elsewhere.
    reports.send(&[
        Buffer::In(FREE + 4 * 4096, 8192),
        Buffer::In(HIGH.0, 4096),
        Buffer::In(FREE + 2 * 4096, 8192),
    ]);
    let expected = [true, true, false, false, false, false, true, true];
    assert_eq!(in_use(&it, FREE, 8), expected);
    assert!(!it.guest.is_in_use(HIGH.0));
    let status = it.status();
    assert_eq!((status.reported_pages, status.discards), (5, 2));
    assert_eq!(status.discarded_bytes, 5 * 4096);
    assert_eq!((status.ballooned_pages, status.bad_buffers), (0, 0));
    assert!(
        reports.call.read().is_ok(),
        "the guest waits for an interrupt"
    );
}

#[test]
fn only_whole_pages_inside_guest_memory_are_discarded() {
    let (mut it, mut reports) = reporting(0);
    use_pages(&it, FREE, 4);
    use_pages(&it, LOW.1 - 8192, 2);
    use_pages(&it, HIGH.0, 2);
    reports.send(&[Buffer::In(FREE + 1, 3 * 4096 - 2)]);
    assert_eq!(in_use(&it, FREE, 4), [true, false, true, true]);
    reports.send(&[Buffer::In(FREE + 1, 4096), Buffer::In(FREE, 0)]);
    reports.send(&[Buffer::In(u64::MAX - 4095, 8192), Buffer::In(1 << 50, 4096)]);
    assert_eq!(in_use(&it, FREE, 4), [true, false, true, true]);
    // Across the hole between the regions.
    reports.send(&[Buffer::In(LOW.1 - 4096, (HIGH.0 - LOW.1 + 8192) as u32)]);
    assert_eq!(in_use(&it, LOW.1 - 8192, 2), [true, false]);
    assert_eq!(in_use(&it, HIGH.0, 2), [false, true]);
    let status = it.status();
    assert_eq!((status.reported_pages, status.bad_buffers), (3, 2));
    assert_eq!(status.out_of_range, 2 + (HIGH.0 - LOW.1) / 4096);
}

#[test]
fn readable_or_endless_reports_are_invalid() {
    let (mut it, mut reports) = reporting(0);
    use_pages(&it, FREE, 2);
    reports.send(&[Buffer::Out(FREE, 4096)]);
    assert!(it.guest.is_in_use(FREE));
    reports.write_descriptor(9, FREE + 4096, 4096, 1 | 2, 9);
    reports.add_head(9);
    reports.kick();
    reports.wait_until_used();
    assert!(!it.guest.is_in_use(FREE + 4096));
    let status = it.status();
    assert_eq!((status.reported_pages, status.bad_buffers), (1, 2));
    assert!(it.daemon.lives());
}

#[test]
fn a_guest_that_poisons_its_free_pages_finds_its_poison_in_them_again() {
    let (mut it, mut reports) = reporting(POISON);
    let flags = VhostUserConfigFlags::WRITABLE;
    let poison = Config::POISON as u32;
    it.guest
        .front_end
        .set_config(poison, flags, &[0xaa; 4])
        .unwrap();
    use_pages(&it, FREE, 1);
    reports.send(&[Buffer::In(FREE, 4096)]);
    assert!(it.guest.is_in_use(FREE));
    let status = it.status();
    assert_eq!((status.reported_pages, status.discards), (1, 0));
    // The guest gives up what it puts into the balloon, poison or not.
    it.inflate(&[pfn(FREE)]);
    assert!(!it.guest.is_in_use(FREE));
    use_pages(&it, FREE, 1);
    it.guest
        .front_end
        .set_config(poison, flags, &[0; 4])
        .unwrap();
    reports.send(&[Buffer::In(FREE, 4096)]);
    assert!(!it.guest.is_in_use(FREE), "a guest that poisons with zeros");
}

#[test]
fn a_poison_value_without_its_feature_means_nothing() {
    let (it, mut reports) = reporting(0);
    let mut it = it;
    let flags = VhostUserConfigFlags::WRITABLE;
    it.guest
        .front_end
        .set_config(Config::POISON as u32, flags, &[0xaa; 4])
        .unwrap();
    use_pages(&it, FREE, 1);
    reports.send(&[Buffer::In(FREE, 4096)]);
    assert!(!it.guest.is_in_use(FREE));
}

#[test]
fn a_round_of_hints_goes_on_while_memory_is_reported() {
    let (mut it, mut reports) = reporting(0);
    it.guest.hints.start(&mut it.guest.front_end, 0);
    let mut migrator = Migrator::connect(&it.daemon.control());
    let id = migrator.open(1);
    assert_eq!(it.guest.wait_for_change().free_page_hint_cmd_id, id.get());
    it.guest.start_round(id);
    it.guest.hints.send(&[Buffer::In(FREE, 1 << 20)]);
    use_pages(&it, FREE + MIB, 1);
    reports.send(&[Buffer::In(FREE + MIB, 1 << 20)]);
    assert!(!it.guest.is_in_use(FREE + MIB));
    assert_eq!(it.guest.config().free_page_hint_cmd_id, id.get());
    assert_eq!(migrator.map.phase(), HintPhase::Running);
    it.guest.hints.send(&[Buffer::In(FREE + 2 * MIB, 1 << 20)]);
    let report = migrator.close(1);
    assert_eq!((report.hints, report.pages, report.stale), (2, 512, 0));
    let (first, later) = (FREE / 4096, (FREE + 2 * MIB) / 4096);
    assert_eq!(migrator.hinted(), [(first, 256), (later, 256)]);
}

#[test]
fn the_dirty_log_has_what_was_reported_and_discarded() {
    let (mut it, mut reports) = reporting(0);
    let log = it.log(PAGES);
    reports.send(&[Buffer::In(FREE, 8192)]);
    let mut expected = vec![reports.used_page(), FREE / 4096, FREE / 4096 + 1];
    expected.sort_unstable();
    assert_eq!(log.pages(), expected);
}

#[test]
fn without_the_flag_reporting_is_not_offered_and_has_no_queue() {
    let mut it = Ballooning::boot(&[], USUAL);
    assert_eq!(it.status().offered & REPORTING, 0);
    use_pages(&it, FREE, 1);
    let mut reports = it.guest.queue(4);
    reports.start(&mut it.guest.front_end, 0);
    reports.add(&[Buffer::In(FREE, 4096)]);
    reports.kick();
    it.inflate(&[pfn(FREE) + 1]);
    assert!(it.guest.is_in_use(FREE));
    assert_eq!(reports.used(), 0);
}

#[test]
fn a_guest_that_reports_80_tib_of_nothing_does_not_fill_the_devices_memory() {
    const ALL: u64 = 80 << 40;
    const GIB: u64 = 1 << 30;
    let memory = guest_memory(&[(0, ALL)]);
    let mut it = Ballooning::boot_with(&["--free-page-reporting"], USUAL | REPORTING, memory);
    let mut reports = it.guest.queue(4);
    reports.start(&mut it.guest.front_end, 0);
    for part in 0..ALL / (512 * GIB) {
        let report = |gib: u64| Buffer::In((part * 512 + gib) * GIB, GIB as u32);
        // The rings are not reported. A chain of more than 4 GiB would be invalid.
        let first = u64::from(part == 0);
        (first..512).for_each(|gib| reports.add(&[report(gib)]));
        reports.kick();
        reports.wait_until_used();
    }
    assert!(it.daemon.lives());
    assert_eq!(it.status().reported_pages, (ALL - GIB) / 4096);
    // The device's memory limit is 1.25 GiB; this is what it may keep of that.
    let status = std::fs::read_to_string(format!("/proc/{}/status", it.daemon.process.id()));
    let status = status.unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse().ok())
        .unwrap();
    assert!(kibibytes < 512 << 10, "{kibibytes} KiB");
}

#[test]
fn the_map_of_a_guest_with_memory_at_64_tib_is_as_small_as_its_memory() {
    const FAR: u64 = 64 << 40;
    let memory = guest_memory(&[(0, 64 * MIB), (FAR, 4 * MIB)]);
    let mut it = Ballooning::boot_with(&["--free-page-reporting"], USUAL | REPORTING, memory);
    let mut reports = it.guest.queue(4);
    reports.start(&mut it.guest.front_end, 0);
    reports.send(&[Buffer::In(FREE, 4096), Buffer::In(FAR + MIB, 8192)]);
    let (runs, regions) = it.person.page_map(PageSet::Reported);
    assert_eq!(runs, [(FREE / 4096, 1), ((FAR + MIB) / 4096, 2)]);
    assert_eq!(regions.len(), 2);
}

#[test]
fn the_maps_of_a_guest_do_not_outlive_it() {
    let (mut it, mut reports) = reporting(0);
    it.guest.hints.start(&mut it.guest.front_end, 0);
    let report = |reports: &mut Queue, it: &mut Ballooning| {
        reports.send(&[Buffer::In(FREE, 8192)]);
        let found = it.person.page_map(PageSet::Reported).0;
        assert_eq!(found, [(FREE / 4096, 2)]);
    };
    report(&mut reports, &mut it);
    // A driver that is loaded again, or a guest that has rebooted: its rings start at 0.
    it.inflate(&[pfn(FREE + MIB)]);
    it.inflate.stop(&it.guest.front_end);
    it.inflate = it.guest.queue(0);
    it.inflate.clear_used();
    it.inflate.set_available(0);
    it.inflate.start(&mut it.guest.front_end, 0);
    it.inflate(&[pfn(FREE + 2 * MIB)]);
    assert_eq!(it.person.page_map(PageSet::Reported).0, []);
    report(&mut reports, &mut it);
    // A person's round, whose map is kept while the guest is there.
    it.person.hints(Request::HintStart);
    let id = CommandId::new(it.guest.wait_for_change().free_page_hint_cmd_id).unwrap();
    it.guest.start_round(id);
    it.guest.hints.send(&[Buffer::In(FREE, 4096)]);
    it.person.hints(Request::HintStop);
    assert_eq!(it.person.page_map(PageSet::Hinted).0, [(FREE / 4096, 1)]);
    it.guest.front_end.reset_device().unwrap();
    assert_eq!(it.person.page_map(PageSet::Reported).0, []);
    let hinted = it.person.refused(Request::PageMap(PageSet::Hinted));
    assert_eq!(hinted, Refusal::NoMap);

    let (it, mut reports) = reporting(0);
    let mut it = it;
    report(&mut reports, &mut it);
    let Ballooning {
        guest,
        mut person,
        daemon,
        ..
    } = it;
    drop(guest);
    let _next = Guest::boot(&daemon, USUAL, 3);
    assert_eq!(person.page_map(PageSet::Reported).0, []);
}
