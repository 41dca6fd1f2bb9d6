// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rule, each clause of which has a switch.

pub use spec::clause::{Clause, UnknownClause};

/// The clauses that hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    switched_off: u64,
}

impl Rule {
    /// Every clause holds.
    pub const WHOLE: Self = Self { switched_off: 0 };

    /// The rule without `clauses`.
    pub fn without(clauses: &[Clause]) -> Self {
        Self {
            switched_off: clauses
                .iter()
                .fold(0, |off, &clause| off | 1u64 << clause as u8),
        }
    }

    /// Whether `clause` holds.
    pub const fn holds(self, clause: Clause) -> bool {
        self.switched_off & (1u64 << clause as u8) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_without_a_clause_has_all_the_others() {
        for &off in Clause::ALL {
            let rule = Rule::without(&[off]);
            for &clause in Clause::ALL {
                assert_eq!(rule.holds(clause), clause != off);
            }
        }
    }
}
