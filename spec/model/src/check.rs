// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Visits all states of a migration.

use std::collections::HashMap;
use std::thread::available_parallelism;

use stateright::{Checker, Model};

use crate::properties;
use crate::state::{Migration, representative};

/// What a visit of all states has found.
#[derive(Clone, Debug)]
pub struct Exhausted {
    /// Different states. States that differ only in the names of pages count as one.
    pub states: usize,
    /// States on the longest path.
    pub depth: usize,
    /// Properties that some state breaks.
    pub broken: Vec<&'static str>,
    /// The guest arrives on some path: the model can complete a migration.
    pub arrives: bool,
}

impl Migration {
    /// Visits every state that can be reached.
    pub fn exhaust(self) -> Exhausted {
        let threads = available_parallelism().map_or(1, Into::into);
        let builder = self.checker().threads(threads);
        // A ragged hint covers half of the next page, so the order of pages matters and they cannot be renamed.
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
