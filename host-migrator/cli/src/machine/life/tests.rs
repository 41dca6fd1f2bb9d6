// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use super::*;

const HERE: Stage = Stage::Here { held: false };

#[test]
fn a_quit_comes_before_the_guest_changes_hands_or_is_refused() {
    let mut life = State::at(Stage::Awaited);
    life.quit(Away::No, false).unwrap();
    assert!(life.take_over().is_err(), "the source keeps the guest");

    let mut life = State::at(Stage::Awaited);
    life.take_over().unwrap();
    for end_guest in [false, true] {
        let refused = life.quit(Away::No, end_guest).unwrap_err();
        assert!(refused.contains("taken over"), "{refused}");
    }
    life.arrived(true);
    let refused = life.quit(Away::No, false).unwrap_err();
    assert!(refused.contains("--end-guest"), "{refused}");
    life.quit(Away::No, true).unwrap();
}

#[test]
fn a_guest_on_its_way_cannot_be_ended_and_one_that_has_left_is_no_hindrance() {
    let mut life = State::at(HERE);
    for end_guest in [false, true] {
        let refused = life.quit(Away::UnderWay, end_guest).unwrap_err();
        assert!(refused.contains("cancel"), "{refused}");
    }
    let refused = life.quit(Away::Unconfirmed, false).unwrap_err();
    assert!(refused.contains("only copy"), "{refused}");
    life.quit(Away::HandedOver, false).unwrap();
    let refused = life.may_leave(Away::No).unwrap_err();
    assert!(refused.contains("told to quit"), "{refused}");
}

#[test]
fn a_guest_that_ended_while_it_was_let_run_stays_ended() {
    let mut life = State::at(Stage::Awaited);
    life.take_over().unwrap();
    life.ended("it reset itself");
    life.arrived(false);
    assert_eq!(life.for_people(Away::No), MachineState::Ended);
    let refused = life.may_leave(Away::No).unwrap_err();
    assert!(refused.contains("it reset itself"), "{refused}");
    life.quit(Away::No, false).unwrap();
}
