// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Honest and hostile statistics of guests, and when a guest is asked for them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use rig::ballooning::{Ballooning, FREE};
use rig::eventually;
use rig::guest::{HIGH, LOW, PROTOCOL, USUAL};
use rig::queue::{Buffer, Queue};
use spec::balloon::stat;
use spec::control::{Reply, Request};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};

/// A guest whose statistics queue, number 2, is set up but not started.
struct Telling {
    it: Ballooning,
    queue: Queue,
}

impl Telling {
    fn boot() -> Self {
        let it = Ballooning::boot(&[], USUAL);
        let queue = it.guest.queue(2);
        Self { it, queue }
    }

    fn start(&mut self) {
        self.queue.start(&mut self.it.guest.front_end, 0);
    }

    /// Queues the one buffer, as the driver does when it starts and each time it gets the buffer back.
    fn tell(&mut self, values: &[(u16, u64)]) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        self.it
            .guest
            .memory
            .write_slice(&bytes, GuestAddress(FREE))
            .unwrap();
        self.queue.add(&[Buffer::Out(FREE, bytes.len() as u32)]);
        self.queue.kick();
    }

    fn ask_every(&mut self, milliseconds: u64) {
        let request = Request::SetStatisticsInterval { milliseconds };
        assert_eq!(self.it.person.ask(request), Reply::Ok);
    }

    fn values(&mut self) -> Option<Vec<(u16, u64)>> {
        let statistics = self.it.statistics()?;
        Some(statistics.values().to_vec())
    }

    fn wait_for(&mut self, values: &[(u16, u64)]) {
        eventually("the statistics", || {
            (self.values().as_deref() == Some(values)).then_some(())
        });
    }
}

#[test]
fn the_guest_is_asked_at_every_interval_and_its_last_answer_is_kept() {
    let mut it = Telling::boot();
    it.start();
    it.tell(&[(stat::FREE_MEMORY, 1 << 30), (stat::OOM_KILLS, 0)]);
    it.wait_for(&[(stat::FREE_MEMORY, 1 << 30), (stat::OOM_KILLS, 0)]);
    assert_eq!(
        it.queue.used(),
        0,
        "the device keeps the buffer until it asks"
    );
    it.ask_every(10);
    for round in 1..5 {
        it.queue.wait_until_used();
        let values = [(stat::AVAILABLE_MEMORY, u64::MAX - round)];
        it.tell(&values);
        it.wait_for(&values);
    }
    assert!(it.queue.call.read().is_ok(), "the guest is interrupted");
    it.queue.wait_until_used();
    it.ask_every(0);
    it.tell(&[]);
    it.wait_for(&[]);
    assert!(it.queue.used() < it.queue.available());
    assert!(
        it.it.guest.is_left_alone(),
        "asking does not change the configuration"
    );
}

#[test]
fn an_interval_on_the_command_line_asks_from_the_start() {
    let it = Ballooning::boot(&["--stats-interval", "1"], USUAL);
    let queue = it.guest.queue(2);
    let mut it = Telling { it, queue };
    assert_eq!(it.it.status().statistics_interval_ms, 1000);
    it.start();
    it.tell(&[]);
    it.queue.wait_until_used();
}

#[test]
fn unknown_tags_are_kept_by_number_and_the_last_of_two_counts() {
    let mut it = Telling::boot();
    it.start();
    it.tell(&[(7, 1), (16, 2), (u16::MAX, 3), (7, 4)]);
    it.wait_for(&[(7, 4), (16, 2), (u16::MAX, 3)]);
}

#[test]
fn all_tags_and_invalid_buffers_do_no_harm() {
    let mut it = Telling::boot();
    it.start();
    let all: Vec<(u16, u64)> = (0..=u16::MAX).map(|tag| (tag, 1)).collect();
    it.tell(&all);
    eventually("some of the buffers", || {
        it.values().filter(|values| values.len() > 16)
    });
    for buffer in [
        Buffer::Out(FREE, 9),
        Buffer::Out(FREE, 11),
        Buffer::Out(LOW.1 - 5, 10),
        Buffer::Out(HIGH.0 + HIGH.1, 10),
        Buffer::Out(u64::MAX - 3, u32::MAX),
        Buffer::In(FREE, 160),
    ] {
        it.queue.add(&[buffer]);
    }
    it.queue.kick();
    eventually("six bad buffers", || {
        (it.it.status().bad_buffers == 6).then_some(())
    });
    it.tell(&[(3, 3)]);
    it.wait_for(&[(3, 3)]);
    assert!(it.it.daemon.lives());
}

#[test]
fn a_guest_that_does_not_answer_is_not_asked_twice() {
    let mut it = Telling::boot();
    it.start();
    it.ask_every(1);
    it.tell(&[(1, 1)]);
    it.queue.wait_until_used();
    it.tell(&[(1, 2)]);
    it.queue.wait_until_used();
    // The device has nothing to give back. A buffer that it gave back twice would show here.
    for _ in 0..20 {
        it.it.status();
        assert_eq!(it.queue.used(), 2);
    }
}

#[test]
fn nothing_is_asked_before_the_queue_runs_or_while_it_is_stopped() {
    let mut it = Telling::boot();
    it.ask_every(1);
    it.tell(&[(1, 1)]);
    assert_eq!((it.queue.used(), it.values()), (0, None));
    it.start();
    it.queue.kick();
    it.queue.wait_until_used();
    it.ask_every(0);
    it.tell(&[(1, 2)]);
    it.wait_for(&[(1, 2)]);
    let next = it.queue.stop(&it.it.guest.front_end);
    assert_eq!(it.queue.used(), 2, "stopping gives the parked buffer back");
    it.ask_every(1);
    it.tell(&[(1, 3)]);
    assert_eq!(it.queue.used(), 2);
    it.queue.renew_kick();
    it.queue.start(&mut it.it.guest.front_end, next);
    it.queue.kick();
    it.queue.wait_until_used();
    it.wait_for(&[(1, 3)]);
}

#[test]
fn statistics_do_not_outlive_their_driver() {
    let mut it = Telling::boot();
    it.start();
    it.tell(&[(1, 1)]);
    it.wait_for(&[(1, 1)]);
    it.it.guest.front_end.reset_device().unwrap();
    assert_eq!(it.values(), None);
    let reply = it.it.person.ask(Request::Statistics);
    assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");

    it.queue.stop(&it.it.guest.front_end);
    it.it.guest.front_end.set_features(USUAL).unwrap();
    it.queue = it.it.guest.queue(2);
    it.queue.set_available(0);
    it.start();
    it.ask_every(1);
    assert_eq!(it.values(), None, "the old buffer is not given back");
    it.tell(&[(1, 7)]);
    it.wait_for(&[(1, 7)]);
}

/// As User Mode Linux does when the driver is removed and loaded again: it acknowledges features without those of the
/// protocol, stops no ring and sends no reset.
#[test]
fn a_new_driver_without_a_reset_does_not_get_the_last_ones_buffer() {
    let mut it = Telling::boot();
    it.start();
    it.tell(&[(1, 1)]);
    it.wait_for(&[(1, 1)]);
    let features = USUAL & !PROTOCOL;
    it.it.guest.front_end.set_features(features).unwrap();
    it.queue = it.it.guest.queue(2);
    it.queue.set_available(0);
    it.queue.start_enabled(&mut it.it.guest.front_end, 0);
    it.ask_every(1);
    eventually("the old statistics are forgotten", || {
        it.values().is_none().then_some(())
    });
    assert_eq!(it.queue.used(), 0);
    it.tell(&[(1, 2)]);
    it.wait_for(&[(1, 2)]);
    it.queue.wait_until_used();
}
