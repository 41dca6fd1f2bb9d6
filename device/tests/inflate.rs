// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Honest and hostile inflating and deflating, and their effects.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::fs;

use rig::ballooning::{Ballooning, FREE, NUMBERS, pfn};
use rig::guest::{HIGH, LOW, MIB, PAGES, PROTOCOL, USUAL, guest_memory};
use rig::queue::{Buffer, QUEUE_SIZE};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use spec::control::PageSet;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

fn ballooning() -> Ballooning {
    Ballooning::boot(&[], USUAL)
}

#[test]
fn a_page_in_the_balloon_gives_its_memory_back_and_comes_back_as_zeros() {
    let mut it = ballooning();
    let pages: Vec<u64> = (0..4).map(|page| FREE + page * 4096).collect();
    pages.iter().for_each(|page| it.guest.use_page(*page));
    // In another order, as Linux gives them, and without the third.
    it.inflate(&[pfn(pages[3]), pfn(pages[0]), pfn(pages[1])]);
    let in_use: Vec<bool> = pages.iter().map(|page| it.guest.is_in_use(*page)).collect();
    assert_eq!(in_use, [false, false, true, false]);
    it.deflate(&[pfn(pages[0])]);
    it.guest.use_page(pages[0]);
    it.inflate(&[pfn(pages[1])]);
    assert!(it.guest.is_in_use(pages[0]));
}

#[test]
fn a_batch_is_discarded_with_one_call_a_run_and_the_balloon_has_a_map() {
    let mut it = ballooning();
    let mut pages: Vec<u32> = (0..256).map(|page| pfn(FREE) + page).collect();
    pages.reverse();
    pages.swap(3, 200);
    it.inflate(&pages);
    it.deflate(&pages[..16]);
    let status = it.status();
    assert_eq!((status.inflated_pages, status.deflated_pages), (256, 16));
    assert_eq!((status.discards, status.discarded_bytes), (1, MIB));
    assert_eq!(status.ballooned_pages, 240);
    let (runs, _) = it.person.page_map(PageSet::Ballooned);
    assert_eq!(runs.iter().map(|run| run.1).sum::<u64>(), 240);
    assert!(it.guest.is_left_alone());
}

#[test]
fn page_numbers_outside_memory_touch_nothing() {
    let mut it = ballooning();
    let edges = [LOW.1 - 4096, HIGH.0 + HIGH.1 - 4096, FREE, HIGH.0];
    edges.iter().for_each(|page| it.guest.use_page(*page));
    let nowhere = [
        pfn(LOW.1),
        pfn(HIGH.0) - 1,
        pfn(HIGH.0 + HIGH.1),
        1 << 31,
        u32::MAX,
    ];
    it.inflate(&nowhere);
    it.deflate(&nowhere);
    assert!(edges.iter().all(|page| it.guest.is_in_use(*page)));
    let status = it.status();
    assert_eq!(
        (status.out_of_range, status.discards, status.ballooned_pages),
        (10, 0, 0)
    );
    it.inflate(&[pfn(edges[0]), pfn(HIGH.0)]);
    assert!(!it.guest.is_in_use(edges[0]) && !it.guest.is_in_use(HIGH.0));
}

#[test]
fn an_array_may_be_split_anywhere_and_an_incomplete_number_is_ignored() {
    let mut it = ballooning();
    (0..4).for_each(|page| it.guest.use_page(FREE + page * 4096));
    it.numbers(&[pfn(FREE), pfn(FREE) + 1, pfn(FREE) + 2, pfn(FREE) + 3]);
    let (three, two) = (Buffer::Out(NUMBERS, 3), Buffer::Out(NUMBERS + 3, 2));
    it.inflate.send(&[three, two, Buffer::Out(NUMBERS + 5, 6)]);
    let in_use: Vec<bool> = (0..4)
        .map(|page| it.guest.is_in_use(FREE + page * 4096))
        .collect();
    assert_eq!(in_use, [false, false, true, true]);
    let status = it.status();
    assert_eq!((status.inflated_pages, status.bad_buffers), (2, 1));
}

#[test]
fn invalid_buffers_come_back_and_are_counted() {
    let mut it = ballooning();
    it.guest.use_page(FREE);
    let outside = Buffer::Out(HIGH.0 + HIGH.1, 64);
    let over_the_end = Buffer::Out(LOW.1 - 4, 8);
    let empty = Buffer::Out(NUMBERS, 0);
    for buffers in [
        &[outside][..],
        &[over_the_end],
        &[Buffer::Out(u64::MAX - 3, 64)],
        &[Buffer::In(FREE, 4096)],
        &[empty],
    ] {
        it.inflate.send(buffers);
        it.deflate.send(buffers);
    }
    assert!(
        it.guest.is_in_use(FREE),
        "a device-writable buffer is not an array"
    );
    assert_eq!(it.status().bad_buffers, 8);
    let numbers = it.numbers(&[pfn(FREE)]);
    it.inflate.send(&[numbers, Buffer::In(FREE + 4096, 4096)]);
    assert!(
        !it.guest.is_in_use(FREE),
        "the valid buffers of a chain count"
    );
}

#[test]
fn an_endless_chain_or_a_broken_ring_only_ends_the_pass() {
    let mut it = ballooning();
    it.guest.use_page(FREE);
    let Buffer::Out(address, length) = it.numbers(&[pfn(FREE)]) else {
        unreachable!("the buffer is device-readable");
    };
    it.inflate.write_descriptor(7, address, length, 1, 7);
    it.inflate.add_head(7);
    it.inflate.kick();
    it.inflate.wait_until_used();
    assert!(!it.guest.is_in_use(FREE));
    it.deflate.set_available(QUEUE_SIZE * 2);
    assert_eq!(it.status().bad_buffers, 1);
    it.deflate.kick();
    rig::eventually("the broken ring is counted", || {
        (it.status().bad_buffers == 2).then_some(())
    });
    it.deflate.set_available(0);
    it.deflate(&[pfn(FREE)]);
    assert_eq!(it.status().deflated_pages, 0, "the balloon is kept");
}

#[test]
fn a_full_queue_is_taken_in_turns_and_none_of_its_pages_is_left_out() {
    let mut it = ballooning();
    // No two pages are adjacent, and the chains hold more numbers than one pass takes.
    let pages: Vec<u32> = (0..128).map(|page| pfn(FREE) + page * 16).collect();
    let numbers = it.numbers(&pages);
    for _ in 0..QUEUE_SIZE {
        it.inflate.add(&[numbers]);
    }
    it.inflate.kick();
    it.inflate.wait_until_used();
    let status = it.status();
    assert_eq!((status.ballooned_pages, status.bad_buffers), (128, 0));
    assert!(
        status.discards > 128,
        "too few discards: {}",
        status.discards
    );
    // The last pass leaves nothing that a later one would take again.
    it.deflate(&pages);
    assert_eq!(it.status().ballooned_pages, 0);
    for _ in 0..QUEUE_SIZE {
        it.deflate.add(&[numbers]);
    }
    it.deflate.kick();
    it.deflate.wait_until_used();
    assert_eq!(it.status().bad_buffers, 0);
}

#[test]
fn endless_page_numbers_are_cut_off_and_deflating_them_empties_the_balloon() {
    let mut it = ballooning();
    it.inflate(&[pfn(FREE), pfn(FREE) + 9]);
    // An array of 16 MiB of guest memory, queued repeatedly: 64 million numbers.
    let all = vec![Buffer::Out(LOW.0, LOW.1 as u32); 16];
    it.inflate.send(&all);
    assert_eq!(it.status().bad_buffers, 16);
    assert!(it.status().ballooned_pages >= 2);
    it.deflate.send(&all);
    assert_eq!(it.status().ballooned_pages, 0);
    assert!(it.daemon.lives());
}

#[test]
fn pages_that_come_twice_are_discarded_again_and_counted_once() {
    let mut it = ballooning();
    it.inflate(&[pfn(FREE), pfn(FREE)]);
    it.guest.use_page(FREE);
    it.inflate(&[pfn(FREE)]);
    assert!(!it.guest.is_in_use(FREE));
    it.deflate(&[pfn(FREE), pfn(FREE)]);
    it.deflate(&[pfn(FREE)]);
    let status = it.status();
    assert_eq!((status.inflated_pages, status.deflated_pages), (1, 1));
    assert_eq!(status.ballooned_pages, 0);
}

#[test]
fn a_page_deflated_in_the_same_pass_is_not_discarded() {
    let mut it = ballooning();
    it.guest.use_page(FREE);
    it.guest.use_page(FREE + 4096);
    let both = it.numbers(&[pfn(FREE), pfn(FREE) + 1]);
    let Buffer::Out(start, _) = both else {
        unreachable!("the buffer is device-readable");
    };
    // The deflate queue is not kicked. Only the pass for the inflate queue finds the buffer.
    it.deflate.add(&[Buffer::Out(start, 4)]);
    it.inflate.send(&[both]);
    it.deflate.wait_until_used();
    assert!(it.guest.is_in_use(FREE) && !it.guest.is_in_use(FREE + 4096));
}

#[test]
fn the_dirty_log_has_what_was_discarded_and_the_used_rings() {
    let mut it = ballooning();
    let log = it.log(PAGES);
    it.inflate(&[pfn(FREE), pfn(FREE) + 1, pfn(HIGH.0)]);
    it.deflate(&[pfn(FREE)]);
    let mut expected = vec![
        it.inflate.used_page(),
        it.deflate.used_page(),
        FREE / 4096,
        FREE / 4096 + 1,
        HIGH.0 / 4096,
    ];
    expected.sort_unstable();
    assert_eq!(log.pages(), expected);
}

#[test]
fn a_guest_that_stops_and_goes_on_keeps_its_balloon_and_a_new_driver_has_none() {
    let mut it = ballooning();
    it.inflate(&[pfn(FREE)]);
    let next = it.inflate.stop(&it.guest.front_end);
    it.guest.front_end.set_features(USUAL).unwrap();
    it.inflate.renew_kick();
    it.inflate.start(&mut it.guest.front_end, next);
    assert_eq!(it.status().ballooned_pages, 1);

    it.inflate.stop(&it.guest.front_end);
    let fresh = it.guest.queue(0);
    fresh.set_available(0);
    fresh.start(&mut it.guest.front_end, 0);
    assert_eq!(it.status().ballooned_pages, 0);
}

/// As User Mode Linux does when the driver is removed and loaded again: it acknowledges features without those of the
/// protocol, stops no ring and sends no reset.
#[test]
fn a_new_driver_without_a_reset_has_an_empty_balloon() {
    let mut it = ballooning();
    it.inflate(&[pfn(FREE)]);
    it.guest.front_end.set_features(USUAL & !PROTOCOL).unwrap();
    it.inflate = it.guest.queue(0);
    it.inflate.set_available(0);
    it.inflate.clear_used();
    it.inflate.start_enabled(&mut it.guest.front_end, 0);
    assert_eq!(it.status().ballooned_pages, 0);
    it.guest.use_page(FREE + 4096);
    it.inflate(&[pfn(FREE) + 1]);
    assert!(!it.guest.is_in_use(FREE + 4096));
}

#[test]
fn a_reset_and_a_front_end_that_hangs_up_forget_the_balloon() {
    let mut it = ballooning();
    it.inflate(&[pfn(FREE)]);
    it.guest.front_end.reset_device().unwrap();
    let status = it.status();
    assert_eq!((status.ballooned_pages, status.inflated_pages), (0, 1));

    let Ballooning { guest, daemon, .. } = it;
    drop(guest);
    let stream = daemon.connect();
    let mut it = Ballooning::boot_over(daemon, stream, USUAL, guest_memory(&[LOW, HIGH]));
    it.inflate(&[pfn(FREE)]);
    let Ballooning { guest, daemon, .. } = it;
    drop(guest);
    let stream = daemon.connect();
    let mut it = Ballooning::boot_over(daemon, stream, USUAL, guest_memory(&[LOW, HIGH]));
    assert_eq!(it.status().ballooned_pages, 0);
}

#[test]
fn pages_of_memory_that_is_unplugged_leave_the_balloon() {
    let mut it = ballooning();
    it.inflate(&[pfn(FREE), pfn(HIGH.0), pfn(HIGH.0) + 5]);
    let table = rig::queue::memory_table(&it.guest.memory);
    it.guest.front_end.remove_mem_region(&table[1]).unwrap();
    let status = it.status();
    assert_eq!((status.ballooned_pages, status.regions), (1, 1));
    it.guest.front_end.add_mem_region(&table[1]).unwrap();
    it.guest.use_page(HIGH.0);
    it.inflate(&[pfn(HIGH.0) + 1]);
    assert!(it.guest.is_in_use(HIGH.0));
}

/// Huge pages for one test. The kernel gets them back at its end.
struct HugePages {
    before: u64,
}

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

impl HugePages {
    /// Has the kernel keep `count` more huge pages. `None`, with a message, if it cannot.
    fn reserve(count: u64) -> Option<Self> {
        let read = || fs::read_to_string(POOL).ok()?.trim().parse::<u64>().ok();
        let before = read()?;
        fs::write(POOL, (before + count).to_string()).ok()?;
        let pool = Self { before };
        (read()? >= before + count).then_some(pool)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.before.to_string());
    }
}

#[test]
fn a_huge_page_is_discarded_once_all_its_pages_are_in_the_balloon_and_no_neighbour_is() {
    const HUGE: u64 = 2 * MIB;
    let Some(_pool) = HugePages::reserve(8) else {
        return spec_testing::skipped("this machine has no huge pages of 2 MiB to give");
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = memfd_create("huge", flags).unwrap();
    ftruncate(&file, 8 * HUGE).unwrap();
    let blocks = {
        let file = file.try_clone().unwrap();
        move || rustix::fs::fstat(&file).unwrap().st_blocks as u64 * 512
    };
    let file = FileOffset::new(file.into(), 0);
    let regions = [(GuestAddress(0), 8 * HUGE as usize, Some(file))];
    let memory = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
    let mut it = Ballooning::boot_with(&[], USUAL, memory);

    let (huge, neighbour) = (4 * HUGE, 5 * HUGE);
    for page in 0..512 {
        it.guest.use_page(huge + page * 4096);
    }
    it.guest.use_page(neighbour);
    it.guest.use_page(huge - 4096);
    it.guest.use_page(NUMBERS);
    let held = blocks();
    let all: Vec<u32> = (0..512).map(|page| pfn(huge) + page).collect();
    it.inflate(&all[..511]);
    assert_eq!((it.status().discards, blocks()), (0, held));
    assert!(it.guest.is_in_use(huge));
    // A page that the guest takes out again and uses keeps the whole huge page.
    it.deflate(&all[..1]);
    it.inflate(&all[511..]);
    assert_eq!(it.status().discards, 0);
    assert!(it.guest.is_in_use(huge));

    it.inflate(&all[..1]);
    let status = it.status();
    assert_eq!((status.discards, status.discarded_bytes), (1, HUGE));
    assert_eq!(blocks(), held - HUGE);
    assert!((0..512).all(|page| !it.guest.is_in_use(huge + page * 4096)));
    assert!(it.guest.is_in_use(neighbour) && it.guest.is_in_use(huge - 4096));
}
