// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon hints`

use spec::balloon::{Command, CommandId};

use crate::command::{device, run, start};
use crate::rig::guest::{Guest, MIB, STATS, USUAL, VERSION_1};
use crate::rig::migrator::Migrator;
use crate::rig::queue::Buffer;

/// The guest answers, and hints 1 MiB at 8 MiB and a page at 40 MiB.
pub fn answers(guest: &mut Guest) {
    let id = guest.wait_for_change().free_page_hint_cmd_id;
    guest.start_round(CommandId::new(id).unwrap());
    guest.hints.send(&[Buffer::In(8 * MIB, 1 << 20)]);
    guest.hints.send(&[Buffer::In(40 * MIB, 4096)]);
}

/// The guest has no more free pages.
pub fn finishes(guest: &mut Guest) {
    let stop = guest.hints.command(&Command::STOP.to_le_bytes());
    guest.hints.send(&[stop]);
}

#[test]
fn a_round_is_waited_for_and_the_guest_has_its_pages_back_at_the_end() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let round = start(&daemon, &["hints", "start", "--json"]);
    answers(&mut guest);
    let running = run(&daemon, &["hints", "status", "--json"]).json();
    assert_eq!(
        (&running["state"], &running["holder"]),
        (&"running".into(), &"person".into())
    );
    finishes(&mut guest);
    let json = round.wait().json();
    assert_eq!(
        (&json["state"], &json["pages"]),
        (&"done".into(), &257.into())
    );
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    let text = run(&daemon, &["hints", "status"]).output;
    assert_eq!(text, "done, for a person: 1.00 MiB free in 2 hint(s)\n");
}

#[test]
fn a_round_that_is_left_alone_lasts_until_it_is_stopped() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let started = run(&daemon, &["hints", "start", "--detach"]);
    assert!(
        started.output.starts_with("requested, for a person"),
        "{started:?}"
    );
    answers(&mut guest);
    finishes(&mut guest);
    let text = run(&daemon, &["hints", "status"]).output;
    assert!(text.starts_with("finished, for a person"), "{text}");
    let again = run(&daemon, &["hints", "start"]);
    assert!(again.complaint().contains("hints stop -c"), "{again:?}");
    assert!(guest.is_left_alone());
    assert!(run(&daemon, &["hints", "stop"]).output.starts_with("done"));
    assert_eq!(guest.wait_for_change().free_page_hint_cmd_id, Command::DONE);
    let twice = run(&daemon, &["hints", "stop"]);
    assert!(
        twice.complaint().contains("no hints have been asked for"),
        "{twice:?}"
    );
}

#[test]
fn a_guest_that_never_answers_gets_its_pages_back_after_the_time() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let said = run(&daemon, &["hints", "start", "--timeout", "50ms"]);
    assert!(
        said.complaint().starts_with("not finished after"),
        "{said:?}"
    );
    guest.wait_for_change();
    assert_eq!(guest.config().free_page_hint_cmd_id, Command::DONE);
}

#[test]
fn a_migration_is_not_disturbed_and_ends_a_round_of_a_person() {
    let daemon = device();
    let mut guest = Guest::boot(&daemon, USUAL, 3);
    let round = start(&daemon, &["hints", "start"]);
    answers(&mut guest);
    let mut migrator = Migrator::connect(&daemon.control());
    let said = round.wait();
    assert!(
        said.complaint().contains("a migration has ended the round"),
        "{said:?}"
    );
    migrator.open(1);
    for job in ["start", "stop"] {
        let said = run(&daemon, &["hints", job]);
        assert!(
            said.complaint().contains("a migration is using"),
            "{said:?}"
        );
    }
    let status = run(&daemon, &["hints", "status", "--json"]).json();
    assert_eq!(
        (&status["holder"], &status["ended"]),
        (&"migrator".into(), &"migrator".into())
    );
    assert_eq!(migrator.close(1).epoch, 1);
}

#[test]
fn a_guest_that_cannot_hint_is_said_to_be_one() {
    let daemon = device();
    let said = run(&daemon, &["hints", "start"]);
    assert!(said.complaint().contains("no VMM is connected"), "{said:?}");
    let guest = Guest::negotiate(&daemon, VERSION_1 | STATS | crate::rig::guest::PROTOCOL, 3);
    let said = run(&daemon, &["hints", "start"]);
    assert!(
        said.complaint().contains("has not taken free page hinting"),
        "{said:?}"
    );
    drop(guest);
}
