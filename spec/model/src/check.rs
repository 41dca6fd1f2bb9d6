// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All states of a migration, looked at one after the other.

use std::collections::HashMap;
use std::thread::available_parallelism;

use stateright::{Checker, Model};

use crate::properties;
use crate::state::{Migration, representative};

/// What a look at all states has found.
#[derive(Clone, Debug)]
pub struct Exhausted {
    /// Different states, up to the names of the pages.
    pub states: usize,
    /// States on the longest path that was walked.
    pub depth: usize,
    /// Properties that some state breaks.
    pub broken: Vec<&'static str>,
    /// The guest arrives on some path: the model can do what it is to do.
    pub arrives: bool,
}

impl Migration {
    /// Looks at every state that can be reached.
    pub fn exhaust(self) -> Exhausted {
        let threads = available_parallelism().map_or(1, Into::into);
        let builder = self.checker().threads(threads);
        // The half page of a ragged hint lies after the whole one: there the pages are not all alike.
        let builder = match self.setup.pages {
            _ if self.setup.ragged => builder,
            2 => builder.symmetry_fn(representative::<2>),
            3 => builder.symmetry_fn(representative::<3>),
            4 => builder.symmetry_fn(representative::<4>),
            _ => builder,
        };
        let checker = builder.spawn_dfs().join();
        let mut found: HashMap<_, _> = checker.discoveries();
        let arrives = found.remove(properties::A_GUEST_ARRIVES).is_some();
        let mut broken: Vec<_> = found.into_keys().collect();
        broken.sort_unstable();
        Exhausted {
            states: checker.unique_state_count(),
            depth: checker.max_depth(),
            broken,
            arrives,
        }
    }
}
