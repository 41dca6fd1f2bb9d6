// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clauses of a model that can be switched off, one at a time.

/// Defines the clauses with names and descriptions, and the rule that they are.
macro_rules! switches {
    (
        $(#[$doc_of_all:meta])* $all:ident,
        $(#[$doc_of_rule:meta])* $rule:ident;
        $( $(#[$doc:meta])* $clause:ident $name:literal $words:literal, )*
    ) => {
        $(#[$doc_of_all])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $all {
            $( $(#[$doc])* $clause, )*
        }

        impl $all {
            /// All clauses.
            pub const ALL: &[Self] = &[$( Self::$clause ),*];

            /// Its name in documents and on a command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$clause => $name, )*
                }
            }

            /// The clause in a few words.
            pub const fn words(self) -> &'static str {
                match self {
                    $( Self::$clause => $words, )*
                }
            }
        }

        impl std::str::FromStr for $all {
            type Err = spec::clause::UnknownClause;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                let mut clauses = Self::ALL.iter().copied();
                clauses
                    .find(|clause| clause.name() == name)
                    .ok_or(spec::clause::UnknownClause)
            }
        }

        impl std::fmt::Display for $all {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.words())
            }
        }

        $(#[$doc_of_rule])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $rule(Option<$all>);

        impl $rule {
            /// Every clause holds.
            pub const WHOLE: Self = Self(None);

            /// The rule without `clause`.
            pub const fn without(clause: $all) -> Self {
                Self(Some(clause))
            }

            /// Whether `clause` holds.
            pub fn holds(self, clause: $all) -> bool {
                self.0 != Some(clause)
            }
        }
    };
}

pub(crate) use switches;
