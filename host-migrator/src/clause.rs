// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The clauses of the rule that a test build can switch off, to show that the tests notice.
//!
//! Without the cargo feature `clause-switches` there is no switch, and every clause holds.

#[cfg(feature = "clause-switches")]
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A clause of the rule in `spec/free-page-hinting.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clause {
    /// Every page is armed before the first epoch opens.
    ArmFirst,
    /// Hints of an epoch are forgotten before the next opens.
    DropStaleHints,
    /// A harvest closes the epoch first.
    CloseBeforeHarvest,
    /// No hint is taken once the guest is paused.
    NoHintAfterPause,
    /// The VMM's own writes are harvested, too.
    MergeOwnWrites,
}

impl Clause {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::ArmFirst,
        Self::DropStaleHints,
        Self::CloseBeforeHarvest,
        Self::NoHintAfterPause,
        Self::MergeOwnWrites,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::ArmFirst => "arm-first",
            Self::DropStaleHints => "drop-stale-hints",
            Self::CloseBeforeHarvest => "close-before-harvest",
            Self::NoHintAfterPause => "no-hint-after-pause",
            Self::MergeOwnWrites => "merge-own-writes",
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no clause's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no clause of the rule is called {0:?}")]
pub struct UnknownClause(String);

impl FromStr for Clause {
    type Err = UnknownClause;

    fn from_str(name: &str) -> Result<Self, UnknownClause> {
        Self::ALL
            .into_iter()
            .find(|clause| clause.name() == name)
            .ok_or_else(|| UnknownClause(name.into()))
    }
}

/// Which clauses hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clauses {
    #[cfg(feature = "clause-switches")]
    switched_off: BTreeSet<Clause>,
}

impl Clauses {
    #[cfg(feature = "clause-switches")]
    pub(crate) fn without(switched_off: &BTreeSet<Clause>) -> Self {
        Self {
            switched_off: switched_off.clone(),
        }
    }

    #[cfg(feature = "clause-switches")]
    pub(crate) fn hold(&self, clause: Clause) -> bool {
        !self.switched_off.contains(&clause)
    }

    #[cfg(not(feature = "clause-switches"))]
    pub(crate) const fn hold(&self, _clause: Clause) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_found_by_its_name() {
        for clause in Clause::ALL {
            assert_eq!(clause.to_string().parse(), Ok(clause));
        }
        assert!("arm".parse::<Clause>().is_err());
    }
}
