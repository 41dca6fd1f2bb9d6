// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must never be so, and what must be so in the end.
//!
//! Stateright's `eventually` is right only where no two paths meet, and here they meet all the time. So
//! liveness is asked as a question about single states: a state in which nobody can do anything more is an
//! end, and every end must be a good one. Everything that can happen is counted, so no path goes in a circle
//! (a test walks all states to see that), and every path leads to an end. What this says: nobody waits for
//! ever for somebody else, however slow each one is. What it does not say: that a guest which writes faster
//! than the link sends is ever migrated; the model's migrator pauses after a number of rounds.

use stateright::{Model, Property};

use crate::guest::Usage;
use crate::host::{self, Step};
use crate::pages::{Page, PageSet};
use crate::state::{Migration, State};

/// At the hand-over every page that the guest uses has its content at the destination.
pub const NO_PAGE_LOST: &str = "no page is lost";
/// At the hand-over every page that the guest gave up is as at the source, or zero.
pub const NO_STALE_PAGE: &str = "no page is stale";
/// While the source has the guest, each page that the guest uses has its content there.
pub const SOURCE_COMPLETE: &str = "the source is complete";
/// The guest never runs in two places, as long as operators look before they decide.
pub const ONE_OWNER: &str = "one host runs the guest";
/// When nobody can do anything more, operators included, the migration is over and the guest runs.
pub const MIGRATION_ENDS: &str = "the migration ends";
/// In the end the driver holds no page.
pub const MEMORY_GIVEN_BACK: &str = "the guest gets its memory back";
/// In the end nobody logs any more.
pub const LOGGING_STOPS: &str = "logging stops";

/// Not a claim but a check on the model: some path ends well.
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

/// A page that the destination's guest misses.
pub(crate) fn lost(model: &Migration, state: &State) -> Option<Page> {
    first_page(model, |page| {
        let here = state.destination.memory[page.index()];
        state.destination.runs()
            && state.guest.uses(page)
            && here != state.guest.content[page.index()]
    })
}

/// A page given up that shows at the destination what it has not at the source.
pub(crate) fn stale(model: &Migration, state: &State) -> Option<Page> {
    first_page(model, |page| {
        let here = state.destination.memory[page.index()];
        state.destination.runs()
            && !state.guest.uses(page)
            && here != state.memory[page.index()]
            && here != 0
    })
}

/// A page that the source's guest misses.
pub(crate) fn damaged(model: &Migration, state: &State) -> Option<Page> {
    first_page(model, |page| {
        let index = page.index();
        state.guest.uses(page) && state.memory[index] != state.guest.content[index]
    })
}

fn first_page(model: &Migration, is_bad: impl Fn(Page) -> bool) -> Option<Page> {
    PageSet::all(model.setup.pages)
        .iter()
        .find(|&page| is_bad(page))
}

/// Nobody can do anything more.
pub(crate) fn is_end(model: &Migration, state: &State) -> bool {
    let mut actions = Vec::new();
    // The migrator can nearly always do something: that is cheaper to ask.
    host::actions(model, state, &mut actions);
    if actions.is_empty() {
        model.actions(state, &mut actions);
    }
    actions.is_empty()
}
