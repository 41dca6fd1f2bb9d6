// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon target`

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use crate::command::{device, run, start};
use crate::rig::guest::{Guest, USUAL};

const MIB: u64 = 1 << 20;

/// The guest writes into its configuration space how much it has given up.
fn gives_up(guest: &mut Guest, bytes: u64) {
    let pages = u32::try_from(bytes / 4096).unwrap();
    let flags = VhostUserConfigFlags::WRITABLE;
    guest
        .front_end
        .set_config(4, flags, &pages.to_le_bytes())
        .unwrap();
}

#[test]
fn the_guest_is_asked_for_the_target_and_waited_for() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let waiting = start(&daemon, &["target", "8M", "--wait", "--json"]);
    assert_eq!(u64::from(guest.wait_for_change().num_pages) * 4096, 8 * MIB);
    gives_up(&mut guest, 3 * MIB);
    gives_up(&mut guest, 8 * MIB);
    let json = waiting.wait().json();
    assert_eq!(
        (&json["target-bytes"], &json["actual-bytes"]),
        (&(8 * MIB).into(), &(8 * MIB).into())
    );

    let smaller = run(&daemon, &["target", "--guest-memory", "30M"]);
    assert!(smaller.success, "{smaller:?}");
    assert_eq!(u64::from(guest.wait_for_change().num_pages) * 4096, 2 * MIB);
    assert_eq!(
        smaller.output, "8.00 MiB of 2.00 MiB\n",
        "it has not followed yet"
    );
}

#[test]
fn a_guest_that_does_not_follow_is_given_up_on_in_time() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    gives_up(&mut guest, MIB);
    let said = run(&daemon, &["target", "8M", "--wait", "--timeout", "50ms"]);
    assert!(
        said.complaint().ends_with("1.00 MiB of 8.00 MiB"),
        "{said:?}"
    );
}

#[test]
fn a_target_that_the_guest_cannot_reach_is_said_to_be_one() {
    let daemon = device();
    let early = run(&daemon, &["target", "64M"]);
    assert!(
        early.success && early.errors.contains("it gets the target when it comes up"),
        "{early:?}"
    );
    let said = run(&daemon, &["target", "--guest-memory", "1M"]);
    assert!(said.complaint().contains("no VMM is connected"), "{said:?}");
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    assert_eq!(
        u64::from(guest.config().num_pages) * 4096,
        32 * MIB,
        "all that it has"
    );
    let more = run(&daemon, &["target", "64M"]);
    assert!(
        more.errors.contains("asked for 32.0 MiB: it has no more"),
        "{more:?}"
    );
    let said = run(&daemon, &["target", "--guest-memory", "64M"]);
    assert!(
        said.complaint().contains("only 32.0 MiB, not 64.0 MiB"),
        "{said:?}"
    );
    let said = run(&daemon, &["target", "17T"]);
    assert!(said.complaint().contains("at most"), "{said:?}");
}
