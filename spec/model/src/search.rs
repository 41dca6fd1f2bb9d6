// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The search for the shortest path to a state that breaks a property.

use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

/// States and the actions that lead from one to the next; the last state has none.
pub(crate) type Steps<M> = Vec<(<M as Model>::State, Option<<M as Model>::Action>)>;

/// What a search has found.
pub(crate) struct Found<M: Model> {
    /// How many different states were visited.
    pub(crate) states: usize,
    /// Steps of the longest path.
    pub(crate) depth: usize,
    /// The shortest path to a broken property.
    pub(crate) path: Option<Steps<M>>,
}

/// Looks for the shortest path of `model` to a state that breaks `property`.
pub(crate) fn shortest<M>(model: M, property: &'static str) -> Found<M>
where
    M: Model + Copy + Send + Sync + 'static,
    M::State: Clone + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Send + Sync + 'static,
{
    let mut found = within(model, property, None);
    // The checker works in batches and keeps the last path of a batch.
    while let Some(path) = &found.path {
        let shorter = within(model, property, Some(path.len() - 1));
        match shorter.path {
            None => break,
            path => found.path = path,
        }
    }
    found
}

/// Searches the states that can be reached in fewer than `steps` steps.
fn within<M>(model: M, property: &'static str, steps: Option<usize>) -> Found<M>
where
    M: Model + Copy + Send + Sync + 'static,
    M::State: Clone + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + PartialEq + Send + Sync + 'static,
{
    let mut builder = model
        .checker()
        .finish_when(HasDiscoveries::AnyOf([property].into()));
    if let Some(steps) = steps {
        builder = builder.target_max_depth(steps + 1);
    }
    let checker = builder.spawn_bfs().join();
    Found {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        path: checker.discovery(property).map(|path| path.into_vec()),
    }
}
