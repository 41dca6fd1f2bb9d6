// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The smallest setup that goes wrong without each clause, and setups for the whole rule.

use super::clause::{PostcopyClause, PostcopyRule};
use super::state::{ENDS_WELL, FOUND_RIGHT, ONE_OWNER, Postcopy, PostcopySetup};

const SMALLEST: PostcopySetup = PostcopySetup::SMALLEST;

/// A postcopy that goes wrong without a clause, and the property that breaks.
#[derive(Clone, Copy, Debug)]
pub struct PostcopyCase {
    /// Who takes part, and which clauses hold.
    pub postcopy: Postcopy,
    /// The property.
    pub property: &'static str,
}

/// The smallest postcopy that goes wrong without `clause`.
pub fn without(clause: PostcopyClause) -> PostcopyCase {
    let touched = PostcopySetup {
        moves: 1,
        ..SMALLEST
    };
    let cut = PostcopySetup {
        cuts: 1,
        ..SMALLEST
    };
    let halves = PostcopySetup {
        file: true,
        halves: true,
        ..cut
    };
    let (setup, property) = match clause {
        PostcopyClause::EmptyFirst => (
            PostcopySetup {
                sent_before: true,
                ..touched
            },
            FOUND_RIGHT,
        ),
        PostcopyClause::ZeroHere => (
            PostcopySetup {
                hinted: true,
                pages: 2,
                ..touched
            },
            ENDS_WELL,
        ),
        PostcopyClause::PlaceMissingOnly => (
            PostcopySetup {
                moves: 2,
                ..SMALLEST
            },
            FOUND_RIGHT,
        ),
        PostcopyClause::NeverRunAgain => (cut, ONE_OWNER),
        PostcopyClause::WaitForRecovery => (PostcopySetup { moves: 1, ..cut }, FOUND_RIGHT),
        PostcopyClause::ExchangeReceived => (cut, ENDS_WELL),
        PostcopyClause::BackToPaused => (PostcopySetup { cuts: 2, ..cut }, ENDS_WELL),
        PostcopyClause::SameSession => (
            PostcopySetup {
                stranger: true,
                moves: 1,
                ..cut
            },
            FOUND_RIGHT,
        ),
        PostcopyClause::KeepUntilComplete => (cut, ENDS_WELL),
        PostcopyClause::SaveUnconfirmed => (PostcopySetup { file: true, ..cut }, ENDS_WELL),
        PostcopyClause::MatchFile => (
            PostcopySetup {
                file: true,
                stranger: true,
                moves: 1,
                ..cut
            },
            FOUND_RIGHT,
        ),
        PostcopyClause::TakeBackUnrun => (PostcopySetup { dies: true, ..cut }, ONE_OWNER),
        PostcopyClause::StopForHalf => (halves, ONE_OWNER),
        PostcopyClause::DestinationFirst => (PostcopySetup { moves: 1, ..halves }, FOUND_RIGHT),
        PostcopyClause::MatchHalves => (
            PostcopySetup {
                stranger: true,
                ..halves
            },
            FOUND_RIGHT,
        ),
    };
    let rule = PostcopyRule::without(clause);
    PostcopyCase {
        postcopy: Postcopy { setup, rule },
        property,
    }
}

/// The whole rule, with everything that can go wrong. No property may be broken.
pub fn whole() -> Vec<(&'static str, PostcopySetup)> {
    let all = PostcopySetup {
        pages: 2,
        moves: 3,
        cuts: 3,
        hinted: true,
        sent_before: true,
        stranger: true,
        file: false,
        halves: false,
        dies: false,
    };
    vec![
        ("two pages, one of them hinted, three breaks", all),
        (
            "two promised pages",
            PostcopySetup {
                hinted: false,
                ..all
            },
        ),
        (
            "three pages, a source that saves what it has",
            PostcopySetup {
                pages: 3,
                moves: 2,
                cuts: 2,
                file: true,
                ..all
            },
        ),
        (
            "two pages, a destination that may die, a source that saves what it has",
            PostcopySetup {
                file: true,
                dies: true,
                cuts: 2,
                ..all
            },
        ),
        (
            "two pages, two halves of which a guest is made",
            PostcopySetup {
                file: true,
                halves: true,
                cuts: 2,
                ..all
            },
        ),
    ]
}
