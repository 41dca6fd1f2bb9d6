// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon estimate`

use crate::command::{device, run, start};
use crate::hints::{answers, finishes};
use crate::rig::guest::{Guest, USUAL};

/// Pages of the rig's guest, and of those that it hints.
const MEMORY: u64 = 32 << 20;
const HINTED: u64 = (1 << 20) + 4096;

#[test]
fn an_estimate_is_what_the_guest_uses_and_the_time_for_it() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let args = ["estimate", "--json", "--bandwidth", "1M"];
    let estimate = start(&daemon, &args);
    answers(&mut guest);
    finishes(&mut guest);
    let json = estimate.wait().json();
    assert_eq!(json["memory-bytes"], MEMORY);
    assert_eq!(json["free-bytes"], HINTED);
    assert_eq!(json["without-hints"]["wire-bytes"], MEMORY);
    assert_eq!(json["without-hints"]["total-ms"], 32_000);
    assert_eq!(json["with-hints"]["wire-bytes"], MEMORY - HINTED);
    assert_eq!(
        guest.config().free_page_hint_cmd_id,
        spec::balloon::Command::DONE,
        "the guest has its memory back"
    );
}

#[test]
fn a_silent_guest_and_a_bad_link_get_a_sentence() {
    let daemon = device();
    let said = run(&daemon, &["estimate"]);
    assert!(said.complaint().contains("no VMM is connected"), "{said:?}");
    let _guest = Guest::boot(&daemon, USUAL, 3);
    let said = run(&daemon, &["estimate", "--timeout", "50ms"]);
    let text = "the guest has told no free page in";
    assert!(said.complaint().starts_with(text), "{said:?}");
    let text = "without hints would send 32.0 MiB in 250 ms at 128 MiB a second";
    assert!(said.complaint().ends_with(text), "{said:?}");
    for bandwidth in ["0", "4095B"] {
        let said = run(&daemon, &["estimate", "--bandwidth", bandwidth]);
        assert!(said.errors.contains("at least a page"), "{said:?}");
    }
}
