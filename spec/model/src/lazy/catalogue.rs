// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The smallest setup that goes wrong without each clause, and setups for the whole rule.

use super::clause::{LazyClause, LazyRule};
use super::state::{FOUND_RIGHT, LazySetup, Restoring, SERVED};

const SMALLEST: LazySetup = LazySetup::SMALLEST;

/// A restore that goes wrong without a clause, and the property that breaks.
#[derive(Clone, Copy, Debug)]
pub struct LazyCase {
    /// Who takes part, and which clauses hold.
    pub restoring: Restoring,
    /// The property.
    pub property: &'static str,
}

/// The smallest restore that goes wrong without `clause`.
pub fn without(clause: LazyClause) -> LazyCase {
    let twice = LazySetup {
        moves: 2,
        ..SMALLEST
    };
    let loaded = LazySetup {
        loader: true,
        ..twice
    };
    let (setup, property) = match clause {
        LazyClause::TellDiscards => (twice, FOUND_RIGHT),
        LazyClause::TellFirst | LazyClause::LookBeforePlacing => (loaded, FOUND_RIGHT),
        LazyClause::BackEndsWait => {
            let back_end = true;
            (
                LazySetup {
                    back_end,
                    ..SMALLEST
                },
                FOUND_RIGHT,
            )
        }
        LazyClause::SavesWait => (
            LazySetup {
                saver: true,
                ..SMALLEST
            },
            FOUND_RIGHT,
        ),
        LazyClause::RightOrNever => (
            LazySetup {
                damage: true,
                ..SMALLEST
            },
            FOUND_RIGHT,
        ),
        LazyClause::LetGoLast => (SMALLEST, FOUND_RIGHT),
        LazyClause::SmallAnswers => (LazySetup { pages: 2, ..twice }, FOUND_RIGHT),
        LazyClause::GiveBack => (
            LazySetup {
                damage: true,
                ..loaded
            },
            SERVED,
        ),
    };
    let rule = LazyRule::without(clause);
    LazyCase {
        restoring: Restoring { setup, rule },
        property,
    }
}

/// The whole rule, with everything that can go wrong. No property may be broken.
pub fn whole() -> Vec<(&'static str, LazySetup)> {
    let all = LazySetup {
        pages: 2,
        moves: 5,
        loader: true,
        back_end: true,
        saver: true,
        damage: false,
    };
    vec![
        ("two pages, a loader, a back end, a saver", all),
        (
            "the same with a damaged page",
            LazySetup {
                damage: true,
                ..all
            },
        ),
        (
            "three pages",
            LazySetup {
                pages: 3,
                moves: 4,
                ..all
            },
        ),
    ]
}
