// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each clause about a guest that is handed over before its memory is needed: without it the model finds wrong bytes, two owners or a
//! page that nobody can bring, and with all of them nothing of that.

use spec_model::pages::Page;
use spec_model::postcopy::PostcopyAction::{self, *};
use spec_model::postcopy::{Postcopy, PostcopyClause, PostcopyRule, catalogue};

const A: Page = Page::A;
const B: Page = Page::B;

/// Checks that the clause's story has `actions` in this order, and that the whole rule has no story.
fn assert_needed(clause: PostcopyClause, actions: &[PostcopyAction]) {
    let case = catalogue::without(clause);
    let story = case.postcopy.look_for_story(case.property);
    let story = story.unwrap_or_else(|| panic!("no story without {clause:?}"));
    assert!(
        story.tells(actions),
        "{clause}: {actions:?} is not what happens in\n{story}"
    );
    let rule = PostcopyRule::WHOLE;
    let whole = Postcopy {
        rule,
        ..case.postcopy
    }
    .exhaust();
    assert_eq!(whole.broken, Vec::<&str>::new(), "{clause}");
}

#[test]
fn the_guest_reads_an_old_version_if_it_is_not_removed_before() {
    assert_needed(PostcopyClause::EmptyFirst, &[TakeOver, Read(A)]);
}

#[test]
fn the_guest_waits_in_vain_if_the_source_is_asked_for_a_page_that_it_did_not_promise() {
    assert_needed(PostcopyClause::ZeroHere, &[Read(B), Fault(B), Complete]);
}

#[test]
fn a_discarded_page_comes_back_if_content_is_placed_where_none_is_missing() {
    assert_needed(
        PostcopyClause::PlaceMissingOnly,
        &[GiveUp(A), Read(A), Arrive(A)],
    );
}

#[test]
fn the_guest_runs_twice_if_the_source_runs_it_after_the_hand_over() {
    assert_needed(
        PostcopyClause::NeverRunAgain,
        &[TakeOver, Break, RunAtSource],
    );
}

#[test]
fn the_guest_reads_zeros_if_it_does_not_wait_for_the_recovery() {
    assert_needed(
        PostcopyClause::WaitForRecovery,
        &[Read(A), Break, AnswerAlone(A)],
    );
}

#[test]
fn a_page_that_was_lost_in_a_buffer_never_comes_if_the_source_trusts_its_own_memory() {
    assert_needed(
        PostcopyClause::ExchangeReceived,
        &[Push(A), Break, Greet, GoOn],
    );
}

#[test]
fn a_recovery_that_breaks_is_the_end_if_it_cannot_be_tried_again() {
    assert_needed(PostcopyClause::BackToPaused, &[Break, Greet, Break]);
}

#[test]
fn the_guest_reads_another_guests_bytes_if_any_source_may_go_on() {
    assert_needed(
        PostcopyClause::SameSession,
        &[Break, Stranger, Push(A), Arrive(A)],
    );
}

#[test]
fn a_page_is_lost_if_the_source_ends_when_it_has_sent_everything() {
    assert_needed(
        PostcopyClause::KeepUntilComplete,
        &[Push(A), Release, Break],
    );
}

#[test]
fn a_page_is_in_neither_half_if_the_source_saves_only_what_it_has_not_sent() {
    assert_needed(PostcopyClause::SaveUnconfirmed, &[Push(A), Break, Save]);
}

#[test]
fn the_guest_reads_another_guests_bytes_if_any_file_will_do() {
    assert_needed(
        PostcopyClause::MatchFile,
        &[Read(A), Break, OpenOther, Load(A), Arrive(A)],
    );
}

#[test]
fn the_guest_runs_twice_if_it_is_taken_back_from_a_destination_that_runs_it() {
    assert_needed(PostcopyClause::TakeBackUnrun, &[TakeOver, Break, TakeBack]);
}

#[test]
fn the_guest_runs_twice_if_the_destination_runs_it_after_saving_its_half() {
    assert_needed(
        PostcopyClause::StopForHalf,
        &[TakeOver, SaveHalf, Save, Reconcile],
    );
}

#[test]
fn a_page_is_as_old_as_the_hand_over_if_the_source_half_goes_first() {
    assert_needed(
        PostcopyClause::DestinationFirst,
        &[GiveUp(A), SaveHalf, Save, Reconcile],
    );
}

#[test]
fn the_guest_has_pages_of_another_if_halves_of_two_hand_overs_are_put_together() {
    assert_needed(
        PostcopyClause::MatchHalves,
        &[Break, SaveHalf, ReconcileWithOther],
    );
}

#[test]
fn no_order_of_events_breaks_the_whole_rule() {
    for (name, setup) in catalogue::whole() {
        let rule = PostcopyRule::WHOLE;
        let found = Postcopy { setup, rule }.exhaust();
        println!("{name}: {} states, {} deep", found.states, found.depth);
        assert_eq!(found.broken, Vec::<&str>::new(), "{name}");
        assert!(found.succeeds, "{name}: not all comes");
    }
}
