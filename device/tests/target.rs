// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many pages the guest is asked for, and when it hears of it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use rig::ballooning::{Ballooning, FREE};
use rig::guest::{Daemon, Guest, HIGH, LOW, PAGES, USUAL};
use rig::migrator::Migrator;
use rig::person::Person;
use rig::queue::{Buffer, Queue};
use rig::{PATIENCE, eventually};
use spec::balloon::{Config, stat};
use spec::control::{Reply, Request};
use spec::hint_map::HintPhase;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress};

fn set_target(person: &mut Person, pages: u32) {
    assert_eq!(person.ask(Request::SetTarget { pages }), Reply::Ok);
}

fn say_actual(guest: &mut Guest, pages: u32) {
    let flags = VhostUserConfigFlags::WRITABLE;
    guest
        .front_end
        .set_config(Config::ACTUAL as u32, flags, &pages.to_le_bytes())
        .unwrap();
}

#[test]
fn the_guest_hears_of_every_new_target_and_of_none_that_is_old() {
    let mut it = Ballooning::boot(&[], USUAL);
    for pages in [256, 512, 0] {
        set_target(&mut it.person, pages);
        set_target(&mut it.person, pages);
        assert_eq!(it.guest.wait_for_change().num_pages, pages);
        assert!(it.guest.is_left_alone());
    }
    say_actual(&mut it.guest, 77);
    let status = it.status();
    assert_eq!((status.actual_pages, status.target_pages), (77, 0));
}

#[test]
fn a_guest_hears_of_a_target_only_once_its_rings_run() {
    let daemon = Daemon::start(&["--target", "4M"]);
    let mut guest = Guest::negotiate(&daemon, USUAL, 3);
    let mut person = Person::connect(&daemon.control());
    assert_eq!(guest.config().num_pages, 1024);
    set_target(&mut person, 256);
    assert!(guest.is_left_alone());
    guest.hints.start(&mut guest.front_end, 0);
    guest.hints.kick();
    assert_eq!(guest.wait_for_change().num_pages, 256);
    guest.hints.stop(&guest.front_end);
    set_target(&mut person, 128);
    assert!(guest.is_left_alone());
    assert_eq!(guest.config().num_pages, 128);
}

#[test]
fn no_guest_is_asked_for_more_than_it_has() {
    let mut it = Ballooning::boot(&[], USUAL);
    set_target(&mut it.person, u32::MAX);
    let there = (LOW.1 + HIGH.1) / 4096;
    assert_eq!(u64::from(it.guest.wait_for_change().num_pages), there);
    let status = it.status();
    assert_eq!(
        (status.wanted_pages, status.target_pages),
        (u32::MAX.into(), there)
    );
    assert!(there < PAGES);
}

#[test]
fn the_guest_cannot_change_its_target() {
    let mut it = Ballooning::boot(&["--target", "4M"], USUAL);
    let flags = VhostUserConfigFlags::WRITABLE;
    let whole = [0xff; 16];
    it.guest.front_end.set_config(0, flags, &whole).unwrap();
    let config = it.guest.config();
    assert_eq!((config.num_pages, config.actual), (1024, u32::MAX));
}

#[test]
fn a_new_target_in_a_round_of_hints_leaves_the_round_alone() {
    let mut it = Ballooning::boot(&[], USUAL);
    it.guest.hints.start(&mut it.guest.front_end, 0);
    let mut migrator = Migrator::connect(&it.daemon.control());
    let id = migrator.open(1);
    assert_eq!(it.guest.wait_for_change().free_page_hint_cmd_id, id.get());
    it.guest.start_round(id);
    set_target(&mut it.person, 100);
    let config = it.guest.wait_for_change();
    // Linux reads the id again at every change. Any other id would end its round.
    assert_eq!(
        (config.num_pages, config.free_page_hint_cmd_id),
        (100, id.get())
    );
    it.guest.hints.send(&[Buffer::In(FREE, 4096)]);
    assert_eq!(migrator.map.phase(), HintPhase::Running);
    assert_eq!(migrator.close(1).hints, 1);
}

/// Answers each request with `available` bytes, until the target satisfies `until`.
fn answer(it: &mut Ballooning, queue: &mut Queue, available: u64, until: impl Fn(u32) -> bool) {
    let mut entry = stat::AVAILABLE_MEMORY.to_le_bytes().to_vec();
    entry.extend(available.to_le_bytes());
    it.guest
        .memory
        .write_slice(&entry, GuestAddress(FREE))
        .unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    loop {
        let target = it.guest.config().num_pages;
        if until(target) {
            return;
        }
        assert!(
            std::time::Instant::now() < end,
            "the target stays at {target}"
        );
        say_actual(&mut it.guest, target);
        if queue.used() == queue.available() {
            queue.add(&[Buffer::Out(FREE, 10)]);
            queue.kick();
        }
    }
}

#[test]
fn the_balloon_shrinks_under_a_guest_that_is_short_of_memory_and_grows_back() {
    let mut it = Ballooning::boot(&["--target", "16M", "--auto-shrink", "4M"], USUAL);
    let request = Request::SetStatisticsInterval { milliseconds: 1 };
    assert_eq!(it.person.ask(request), Reply::Ok);
    let mut queue = it.guest.queue(2);
    queue.start(&mut it.guest.front_end, 0);
    assert_eq!(it.guest.config().num_pages, 4096);
    answer(&mut it, &mut queue, 3 << 20, |target| target == 0);
    assert_eq!(it.status().wanted_pages, 4096);
    answer(&mut it, &mut queue, 64 << 20, |target| target == 4096);
    eventually("the guest's new target", || {
        (!it.guest.is_left_alone()).then_some(())
    });
}
