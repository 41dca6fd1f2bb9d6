// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must always hold, and what must hold at the end.
//!
//! Stateright's `eventually` is only correct where no two paths lead to the same state, and here many do. So liveness
//! is a property of single states: a state in which nobody can take another step is an end, and every end must be
//! good. The number of steps is bounded, so no path is a circle (a test checks that), and every path leads to an end.
//! This proves that nobody waits for ever for another, however slow each one is. It does not prove that a guest which
//! writes faster than the link sends is ever migrated: the model's migrator pauses the guest after a number of rounds.

use stateright::{Model, Property};

use crate::guest::Usage;
use crate::host::{self, Step};
use crate::pages::{ModelPages, Page};
use crate::state::{Migration, State};

/// At the hand-over every page that the guest uses has its content at the destination.
pub const NO_PAGE_LOST: &str = "no page is lost";
/// At the hand-over every page that the guest gave up has the source's content or is zero.
pub const NO_STALE_PAGE: &str = "no page is stale";
/// While the source owns the guest, every page that the guest uses has its content there.
pub const SOURCE_COMPLETE: &str = "the source is complete";
/// The guest never runs in two places, as long as operators look before they decide.
pub const ONE_OWNER: &str = "one host runs the guest";
/// When nobody, operators included, can take another step, the migration is over and the guest runs.
pub const MIGRATION_ENDS: &str = "the migration ends";
/// At the end the driver holds no page.
pub const MEMORY_GIVEN_BACK: &str = "the guest gets its memory back";
/// At the end nobody logs.
pub const LOGGING_STOPS: &str = "logging stops";

/// A check of the model itself: on some path a guest arrives.
pub const A_GUEST_ARRIVES: &str = "a guest arrives";

/// All properties.
pub(crate) fn all() -> Vec<Property<Migration>> {
    vec![
        Property::always(NO_PAGE_LOST, |model, state| lost(model, state).is_none()),
        Property::always(NO_STALE_PAGE, |model, state: &State| {
            stale(model, state).is_none()
        }),
        Property::always(SOURCE_COMPLETE, |model, state: &State| {
            damaged(model, state).is_none()
        }),
        Property::always(ONE_OWNER, |_, state: &State| {
            !(state.source_runs && state.destination.runs())
        }),
        Property::always(MIGRATION_ENDS, |model, state: &State| {
            let good = state.host.step == Step::Over && state.guest_runs();
            good || !is_end(model, state)
        }),
        Property::always(MEMORY_GIVEN_BACK, |model, state: &State| {
            let held = state.guest.usage.contains(&Usage::Held);
            !(held && state.guest_runs() && state.host.step == Step::Over && is_end(model, state))
        }),
        Property::always(LOGGING_STOPS, |_, state: &State| {
            !(state.logs.on && state.host.step == Step::Over)
        }),
        Property::sometimes(A_GUEST_ARRIVES, |_, state: &State| state.destination.runs()),
    ]
}

/// A page that the guest uses and that has other content at the destination.
pub(crate) fn lost(model: &Migration, state: &State) -> Option<Page> {
    first_page(model, |page| {
        let there = state.at_destination(page);
        state.destination.runs()
            && state.guest.uses(page)
            && there != state.guest.content[page.index()]
    })
}

/// A page that the guest gave up and that has, at the destination, neither the source's content nor zeros.
pub(crate) fn stale(model: &Migration, state: &State) -> Option<Page> {
    first_page(model, |page| {
        let there = state.at_destination(page);
        state.destination.runs()
            && !state.guest.uses(page)
            && there != state.memory[page.index()]
            && there != 0
    })
}

/// A page that the guest uses and that has other content at the source.
pub(crate) fn damaged(model: &Migration, state: &State) -> Option<Page> {
    first_page(model, |page| {
        let index = page.index();
        state.guest.uses(page) && state.memory[index] != state.guest.content[index]
    })
}

fn first_page(model: &Migration, is_bad: impl Fn(Page) -> bool) -> Option<Page> {
    ModelPages::all(model.setup.pages)
        .iter()
        .find(|&page| is_bad(page))
}

/// Whether nobody can take another step.
pub(crate) fn is_end(model: &Migration, state: &State) -> bool {
    let mut actions = Vec::new();
    // The migrator first: it can nearly always take a step.
    host::actions(model, state, &mut actions);
    if actions.is_empty() {
        model.actions(state, &mut actions);
    }
    actions.is_empty()
}
