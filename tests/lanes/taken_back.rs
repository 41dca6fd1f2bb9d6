// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest is handed over before its memory, and the hand-over is lost: an operator decides who has it, and no state is a dead end.

use host_migrator::report::stats::MigrationState;
use lacuna::compare::Host;
use lacuna::machine::MachineState;
use spec::stream::SectionKind;

use crate::lab::wire::{self, Fault};
use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, comes_whole, command, connect_again, hand_over,
    listen_again, skipped_without_postcopy, status, whole_pass,
};

/// A guest whose hand-over was lost: it stands still on both sides.
fn lost(test: &str) -> Option<(Lab, Host, Host)> {
    if skipped_without_postcopy(test) {
        return None;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", false);
    let lossy = wire::faulty_first(&uri, SectionKind::HandOver, Fault::Cut(0));
    let begin = ["send", &lossy, "--postcopy", "at-once", "--detach"];
    command(&source, &begin).unwrap();
    let found = source.wait_until("the source to notice", PATIENCE, |status| {
        Ok(status.migration.status == MigrationState::PostcopyPaused)
    });
    assert_eq!(found.unwrap().machine, MachineState::Undecided);
    let found = destination.wait_until("the destination to notice", PATIENCE, |status| {
        Ok(status.machine == MachineState::Undecided)
    });
    found.unwrap();
    for refused in [&["resume"][..], &["quit"]] {
        let why = command(&source, refused).unwrap_err();
        assert!(why.contains("did not confirm"), "{why}");
    }
    for refused in [&["cont"][..], &["quit"], &["recover", "tcp:127.0.0.1:0"]] {
        command(&destination, refused).unwrap_err();
    }
    Some((lab, source, destination))
}

#[test]
fn a_guest_is_taken_back_from_a_destination_that_died_before_it_ran_it() {
    let Some((lab, mut source, mut destination)) = lost("postcopy, taken back") else {
        return;
    };
    destination.machine.kill();
    command(&source, &["resume", "--source-owns"]).unwrap();
    let now = status(&source);
    assert_eq!(now.machine, MachineState::Running);
    assert_eq!(now.migration.status, MigrationState::HandedOverUnconfirmed);
    let guest = whole_pass(&mut source);
    assert_eq!(guest.wrong, 0, "{guest:?}");
    // Nobody may decide twice, and nothing is left to be recovered.
    command(&source, &["resume", "--source-owns"]).unwrap_err();
    command(&source, &["recover", "tcp:127.0.0.1:1"]).unwrap_err();
    // It is a guest like any other.
    lab.move_whole(&Migration::default(), &mut source, "another");
}

#[test]
fn a_guest_that_is_run_at_the_destination_gets_its_memory_after_a_recovery_and_is_not_taken_back() {
    let Some((_lab, mut source, mut destination)) = lost("postcopy, decided there") else {
        return;
    };
    command(&destination, &["cont", "--destination-owns"]).unwrap();
    connect_again(&source, &listen_again(&destination, "127.0.0.1")).unwrap();
    let found = source.wait_until("the source to go on", PATIENCE, |status| {
        Ok(status.machine == MachineState::HandedOver)
    });
    found.unwrap();
    let refused = command(&source, &["resume", "--source-owns"]).unwrap_err();
    assert!(refused.contains("the guest runs there"), "{refused}");
    comes_whole(&mut source, &mut destination);
}

#[test]
fn a_guest_whose_hand_over_was_confirmed_is_not_taken_back_even_if_the_destination_has_died() {
    if skipped_without_postcopy("postcopy, not taken back") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", false);
    hand_over(&mut source, &uri, 4 << 20);
    destination.machine.kill();
    let found = source.wait_until("the source to notice", PATIENCE, |status| {
        Ok(status.migration.status == MigrationState::PostcopyPaused)
    });
    assert_eq!(found.unwrap().machine, MachineState::HandedOver);
    for refused in [&["resume", "--source-owns"][..], &["resume"], &["quit"]] {
        command(&source, refused).unwrap_err();
    }
    command(&source, &["quit", "--end-guest"]).unwrap();
}
