// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Visits all states of a migration.

use std::thread::available_parallelism;

use stateright::{Checker, Model};

use crate::properties;
use crate::state::{Migration, representative};
use crate::told::Exhausted;

impl Migration {
    /// Visits every state that can be reached. States that differ only in the names of pages count as one. The model succeeds if
    /// the guest arrives on some path.
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
        Exhausted::of(&checker, properties::A_GUEST_ARRIVES)
    }
}
