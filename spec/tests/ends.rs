// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Liveness: every run of the model ends, and a guest that does not answer changes nothing.

use std::collections::{BTreeSet, HashMap};

use spec_model::setup::Clearing;
use spec_model::{Action, Migration, Rule, Setup, State};
use stateright::Model;

/// Visits all states, depth first, and calls `end` for each without a next state. Returns whether no path is a circle.
fn walk(model: &Migration, mut end: impl FnMut(&State)) -> bool {
    // The states on the current path, with the actions that are left to try. Below, `true` marks finished states.
    let mut path: Vec<(State, Vec<Action>)> = Vec::new();
    let mut done: HashMap<State, bool> = HashMap::new();
    let actions = |state: &State| {
        let mut actions = Vec::new();
        model.actions(state, &mut actions);
        actions
    };
    for first in model.init_states() {
        done.insert(first, false);
        path.push((first, actions(&first)));
        while let Some((state, left)) = path.last_mut() {
            let state = *state;
            let Some(action) = left.pop() else {
                done.insert(state, true);
                path.pop();
                continue;
            };
            let Some(next) = model.next_state(&state, action) else {
                continue;
            };
            match done.get(&next) {
                Some(false) => return false,
                Some(true) => {}
                None => {
                    let after = actions(&next);
                    if after.is_empty() {
                        end(&next);
                    }
                    done.insert(next, false);
                    path.push((next, after));
                }
            }
        }
    }
    true
}

fn whole(setup: Setup) -> Migration {
    Migration {
        setup,
        rule: Rule::WHOLE,
    }
}

#[test]
fn every_run_ends() {
    let small = Setup {
        moves: 3,
        ..Setup::SMALL
    };
    let setups = [
        small,
        Setup {
            failures: 1,
            deaths: 1,
            impatience: 1,
            pages: 1,
            rounds: 1,
            ..small
        },
        Setup {
            local: true,
            failures: 2,
            pages: 1,
            rounds: 1,
            ..small
        },
        Setup {
            background: 1,
            channels: 2,
            agent: true,
            clearing: Clearing::PageByPage,
            pages: 1,
            ..small
        },
        Setup {
            reporting: true,
            init_on_free: true,
            back_end_writes: 1,
            own_writes: 1,
            pages: 1,
            ..small
        },
    ];
    for setup in setups {
        let mut ends = 0;
        let finite = walk(&whole(setup), |_| ends += 1);
        assert!(finite, "a path of {setup:?} is a circle");
        assert!(ends > 0);
    }
}

#[test]
fn a_guest_that_does_not_answer_changes_nothing() {
    let silent = Setup {
        driver: false,
        agent: false,
        moves: 3,
        ..Setup::SMALL
    };
    let outcomes = |hints: bool| {
        let mut outcomes = BTreeSet::new();
        let model = whole(Setup { hints, ..silent });
        assert!(walk(&model, |state| {
            outcomes.insert(state.outcome());
        }));
        outcomes
    };
    assert_eq!(outcomes(true), outcomes(false));
}

#[test]
fn a_guest_that_answers_changes_something() {
    let outcomes = |driver: bool| {
        let mut outcomes = BTreeSet::new();
        let setup = Setup {
            driver,
            moves: 3,
            ..Setup::SMALL
        };
        walk(&whole(setup), |state| {
            outcomes.insert(state.outcome());
        });
        outcomes
    };
    assert_ne!(outcomes(true), outcomes(false));
}
