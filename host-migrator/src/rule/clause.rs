// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The clauses of the rule that a test build can switch off, to show that the tests notice.
//!
//! Only the tests of switched-off clauses are built with `--cfg clause_switches`. All other builds have no switch, and every
//! clause holds. It is not a cargo feature, because cargo unifies features: one dependent would switch clauses off for all.

#[cfg(clause_switches)]
use std::collections::BTreeSet;

pub use spec::clause::Clause;

/// The clauses that have a switch here.
pub const SWITCHES: [Clause; 10] = [
    Clause::ArmFirst,
    Clause::KeepEarly,
    Clause::SpareEarlyCopies,
    Clause::ForgetOldHints,
    Clause::CloseBeforeHarvest,
    Clause::NoHintAfterPause,
    Clause::MergeOwnWrites,
    Clause::FlushTables,
    Clause::ForgetHoles,
    Clause::DrainChannels,
];

/// A name that is not of one of [`SWITCHES`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no clause that can be switched off is called {0:?}")]
pub struct NoSwitch(String);

/// The clause with this name that can be switched off.
///
/// # Errors
/// [`NoSwitch`] if there is none.
pub fn switch(name: &str) -> Result<Clause, NoSwitch> {
    SWITCHES
        .into_iter()
        .find(|clause| clause.name() == name)
        .ok_or_else(|| NoSwitch(name.into()))
}

/// Which clauses hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clauses {
    #[cfg(clause_switches)]
    switched_off: BTreeSet<Clause>,
}

impl Clauses {
    #[cfg(clause_switches)]
    pub(crate) fn without(switched_off: &BTreeSet<Clause>) -> Self {
        Self {
            switched_off: switched_off.clone(),
        }
    }

    #[cfg(clause_switches)]
    pub(crate) fn hold(&self, clause: Clause) -> bool {
        !self.switched_off.contains(&clause)
    }

    #[cfg(not(clause_switches))]
    pub(crate) const fn hold(&self, _clause: Clause) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clauses_with_a_switch_can_be_switched_off() {
        assert_eq!(switch("arm-first"), Ok(Clause::ArmFirst));
        assert!(switch("round-inward").is_err());
        assert!(switch("arm").is_err());
    }
}
