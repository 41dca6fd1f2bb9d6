// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon stats`

use spec::balloon::stat;

use crate::command::{device, run, start};
use crate::rig::eventually;
use crate::rig::guest::{Guest, USUAL};
use crate::rig::queue::Queue;

const STATS_QUEUE: usize = 2;

/// A guest whose statistics queue runs.
fn with_statistics(daemon: &crate::rig::guest::Daemon) -> (Guest, Queue) {
    let mut guest = Guest::boot(daemon, USUAL, 3);
    let queue = guest.queue(STATS_QUEUE);
    queue.start(&mut guest.front_end, 0);
    (guest, queue)
}

/// The guest sends one statistic; the device keeps the buffer.
fn sends(queue: &mut Queue, tag: u16, value: u64) {
    let bytes = [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let buffer = queue.command(&bytes);
    queue.add(&[buffer]);
    queue.kick();
}

#[test]
fn the_newest_statistics_are_shown_with_their_names() {
    let daemon = device();
    let (_guest, mut queue) = with_statistics(&daemon);
    let none = run(&daemon, &["stats"]);
    assert!(none.complaint().contains("give --interval"), "{none:?}");
    sends(&mut queue, stat::FREE_MEMORY, 5 << 20);
    let json = eventually("statistics", || {
        let said = run(&daemon, &["stats", "--json"]);
        said.success.then(|| said.json())
    });
    assert_eq!(json["stats"]["free-memory"], 5 << 20);
    let text = run(&daemon, &["stats"]).output;
    assert!(text.contains("free-memory            5.00 MiB"), "{text}");
}

#[test]
fn an_interval_makes_the_device_ask_and_the_command_wait_for_the_answer() {
    let daemon = device();
    let (_guest, mut queue) = with_statistics(&daemon);
    sends(&mut queue, stat::FREE_MEMORY, 1);
    let waiting = start(&daemon, &["stats", "--interval", "300ms", "--json"]);
    eventually("the device asks", || (queue.used() >= 1).then_some(()));
    sends(&mut queue, stat::FREE_MEMORY, 2);
    // The first may be young enough to count.
    let free = &waiting.wait().json()["stats"]["free-memory"];
    assert!([1, 2].map(serde_json::Value::from).contains(free), "{free}");
    assert_eq!(
        run(&daemon, &["status", "--json"]).json()["stats-interval-ms"],
        300
    );
    let off = run(&daemon, &["stats", "--interval", "0"]);
    assert_eq!(off.output, "the guest is no longer asked\n");
    assert_eq!(
        run(&daemon, &["status", "--json"]).json()["stats-interval-ms"],
        0
    );
}

#[test]
fn statistics_that_cannot_come_are_not_waited_for() {
    let daemon = device();
    let said = run(&daemon, &["stats"]);
    assert!(said.complaint().contains("no VMM is connected"), "{said:?}");
    let without = USUAL & !(1 << spec::balloon::feature::STATS_VQ);
    let _guest = Guest::boot(&daemon, without, 2);
    let said = run(&daemon, &["stats", "--interval", "1s"]);
    assert!(
        said.complaint()
            .contains("has not taken the statistics queue"),
        "{said:?}"
    );
    run(&daemon, &["stats", "--interval", "0"]);
    let said = run(&daemon, &["stats", "--watch"]);
    assert!(said.complaint().contains("--interval"), "{said:?}");
}
