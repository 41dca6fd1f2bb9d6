// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each clause about a guest that runs before its memory is there is needed: without it the model finds somebody who sees wrong
//! bytes or waits in vain, and with all of them nobody.

use spec_model::lazy::LazyAction::{self, *};
use spec_model::lazy::state::Bringer::{Answerer, Loader};
use spec_model::lazy::{LazyClause, LazyRule, Restoring, catalogue};
use spec_model::pages::Page;

const A: Page = Page::A;

/// Checks that the clause's story has `actions` in this order, and that the whole rule has no story.
fn assert_needed(clause: LazyClause, actions: &[LazyAction]) {
    let case = catalogue::without(clause);
    let story = case.restoring.look_for_story(case.property);
    let story = story.unwrap_or_else(|| panic!("no story without {clause:?}"));
    assert!(
        story.tells(actions),
        "{clause}: {actions:?} is not what happens in\n{story}"
    );
    let rule = LazyRule::WHOLE;
    let whole = Restoring {
        rule,
        ..case.restoring
    }
    .exhaust();
    assert_eq!(whole.broken, Vec::<&str>::new(), "{clause}");
}

#[test]
fn a_discarded_page_comes_back_if_nobody_tells_of_it() {
    assert_needed(
        LazyClause::TellDiscards,
        &[Discarded(A), Read(A), Place(Answerer)],
    );
}

#[test]
fn a_discarded_page_comes_back_if_that_is_told_afterwards() {
    let actions = [Discard(A), Place(Loader), Discarded(A)];
    assert_needed(LazyClause::TellFirst, &actions);
}

#[test]
fn a_discarded_page_comes_back_if_it_was_read_before_and_is_placed_afterwards() {
    let actions = [Load(A), Discard(A), Place(Loader)];
    assert_needed(LazyClause::LookBeforePlacing, &actions);
}

#[test]
fn a_back_end_and_a_saver_take_what_is_missing_for_zeros_if_they_do_not_wait() {
    assert_needed(LazyClause::BackEndsWait, &[Touch(A)]);
    assert_needed(LazyClause::SavesWait, &[Save(A)]);
}

#[test]
fn the_guest_reads_wrong_bytes_if_a_damaged_page_is_answered() {
    assert_needed(LazyClause::RightOrNever, &[Read(A), Place(Answerer)]);
}

#[test]
fn the_guest_reads_zeros_if_the_kernel_answers_too_early() {
    assert_needed(LazyClause::LetGoLast, &[LetGo]);
}

#[test]
fn a_neighbour_is_zero_if_it_comes_with_a_huge_page() {
    let case = catalogue::without(LazyClause::SmallAnswers);
    let story = case.restoring.look_for_story(case.property).unwrap();
    let story = story.to_string();
    assert!(story.contains("its neighbour, too"), "{story}");
    assert_needed(LazyClause::SmallAnswers, &[Place(Answerer)]);
}

#[test]
fn the_guest_waits_in_vain_if_the_loader_keeps_a_damaged_page() {
    assert_needed(LazyClause::GiveBack, &[Load(A), Place(Loader)]);
}

#[test]
fn no_order_of_events_breaks_the_whole_rule() {
    for (name, setup) in catalogue::whole() {
        let rule = LazyRule::WHOLE;
        let found = Restoring { setup, rule }.exhaust();
        println!("{name}: {} states, {} deep", found.states, found.depth);
        assert_eq!(found.broken, Vec::<&str>::new(), "{name}");
        assert!(setup.damage || found.succeeds, "{name}: not all comes");
    }
}
