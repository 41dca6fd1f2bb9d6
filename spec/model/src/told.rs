// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a search or a visit of any of the models has found: a path in plain words, or the sum of all states.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use stateright::{Checker, Model};

use crate::search::{Steps, shortest};

/// The shortest path to a broken property, as a story in plain words.
#[derive(Clone, Debug)]
pub struct Told<A> {
    /// The property.
    pub property: &'static str,
    /// The steps, in order.
    pub actions: Vec<A>,
    sentences: Vec<String>,
    end: String,
}

impl<A: Copy + PartialEq> Told<A> {
    /// The story of `path`: a `sentence` for what an action did between two states, and a `moral` of the last one.
    pub(crate) fn new<M: Model<Action = A>>(
        property: &'static str,
        path: &Steps<M>,
        sentence: impl Fn(&M::State, A, &M::State) -> String,
        moral: impl FnOnce(&M::State) -> String,
    ) -> Self {
        let mut actions = Vec::new();
        let mut sentences = Vec::new();
        for step in path.windows(2) {
            if let [(before, Some(action)), (after, _)] = step {
                actions.push(*action);
                sentences.push(sentence(before, *action, after));
            }
        }
        let end = path.last().map(|(last, _)| moral(last));
        Self {
            property,
            actions,
            sentences,
            end: end.unwrap_or_default(),
        }
    }

    /// The story of the shortest path of `model` to a state that breaks `property`, told as by [`Told::new`]; `None` if nothing does.
    pub(crate) fn look_for<M>(
        model: M,
        property: &'static str,
        sentence: impl Fn(&M, &M::State, A, &M::State) -> String,
        moral: impl FnOnce(&M, &M::State) -> String,
    ) -> Option<Self>
    where
        M: Model<Action = A> + Copy + Send + Sync + 'static,
        M::State: Clone + Hash + PartialEq + Send + Sync + 'static,
        A: Send + Sync + 'static,
    {
        let path = shortest(model, property).path?;
        Some(Self::new::<M>(
            property,
            &path,
            |before, action, after| sentence(&model, before, action, after),
            |last| moral(&model, last),
        ))
    }

    /// Whether `actions` happen in the story in this order. Other actions may come in between.
    pub fn tells(&self, actions: &[A]) -> bool {
        let mut told = self.actions.iter();
        actions.iter().all(|action| told.any(|one| one == action))
    }
}

impl<A> fmt::Display for Told<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, sentence) in self.sentences.iter().enumerate() {
            writeln!(f, "{}. {sentence}", index + 1)?;
        }
        write!(f, "\n{}", self.end)
    }
}

/// What a visit of all states has found.
#[derive(Clone, Debug)]
pub struct Exhausted {
    /// Different states.
    pub states: usize,
    /// States on the longest path.
    pub depth: usize,
    /// Properties that some state breaks.
    pub broken: Vec<&'static str>,
    /// On some path the model does what it is for.
    pub succeeds: bool,
}

impl Exhausted {
    /// What `checker` has found, which has visited all states. `success` is the property that some state must have.
    pub(crate) fn of<M>(checker: &impl Checker<M>, success: &'static str) -> Self
    where
        M: Model,
        M::State: Clone + PartialEq,
        M::Action: Clone + PartialEq,
    {
        let mut found: HashMap<_, _> = checker.discoveries();
        let succeeds = found.remove(success).is_some();
        let mut broken: Vec<_> = found.into_keys().collect();
        broken.sort_unstable();
        Self {
            states: checker.unique_state_count(),
            depth: checker.max_depth(),
            broken,
            succeeds,
        }
    }
}
