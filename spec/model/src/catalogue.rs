// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Setups by name: the smallest one that goes wrong without each clause, what other hypervisors do, and the whole rule.

use crate::properties::{
    LOGGING_STOPS, MEMORY_GIVEN_BACK, MIGRATION_ENDS, NO_PAGE_LOST, NO_STALE_PAGE, ONE_OWNER,
    SOURCE_COMPLETE,
};
use crate::rule::{Clause, Rule};
use crate::setup::{Clearing, Setup};
use crate::state::Migration;

/// The smallest setup: one page, one round.
const TINY: Setup = Setup {
    pages: 1,
    moves: 4,
    rounds: 1,
    ..Setup::SMALL
};

/// A guest that is not asked for hints.
const WITHOUT_HINTS: Setup = Setup {
    hints: false,
    driver: false,
    ..TINY
};

/// The same, which fills freed pages with zeros.
const ZEROED: Setup = Setup {
    init_on_free: true,
    ..WITHOUT_HINTS
};

/// A migration with a name, and the property to check.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// Who takes part, and which clauses hold.
    pub migration: Migration,
    /// The property.
    pub property: &'static str,
}

/// The smallest migration that goes wrong without `clause`.
pub fn without(clause: Clause) -> Case {
    let setup = match clause {
        Clause::ArmFirst
        | Clause::KeepLog
        | Clause::KeepMemory
        | Clause::NoHintAfterPause
        | Clause::SayDone
        | Clause::StopLogging => TINY,
        Clause::ArmedWhenAsked | Clause::ArmBeforeCopy => Setup {
            clearing: Clearing::PageByPage,
            ..TINY
        },
        Clause::CloseBeforeHarvest | Clause::ForgetOldHints | Clause::DiscardAtDestination => {
            Setup { rounds: 2, ..TINY }
        }
        Clause::DiscardBeforeHarvest => Setup {
            rounds: 2,
            late_discards: true,
            ..TINY
        },
        Clause::SpareEarlyCopies => Setup {
            early: 1,
            late_discards: true,
            ..TINY
        },
        Clause::KeepEarly => Setup { early: 1, ..TINY },
        Clause::CheckCommandId | Clause::CompleteHarvest => Setup {
            rounds: 2,
            moves: 5,
            ..TINY
        },
        Clause::TagWhenLookedAt => Setup {
            rounds: 2,
            driver: false,
            agent: true,
            ..TINY
        },
        Clause::MergeBackEnd | Clause::DrainBackEnds => Setup {
            back_end_writes: 1,
            moves: 0,
            ..TINY
        },
        Clause::MergeOwnWrites => Setup {
            own_writes: 1,
            moves: 0,
            ..TINY
        },
        Clause::KeepTaken => Setup {
            ring: 1,
            ..WITHOUT_HINTS
        },
        Clause::WaitWhenFull => Setup {
            pages: 2,
            ring: 1,
            ..WITHOUT_HINTS
        },
        Clause::LogDiscards => Setup {
            reporting: true,
            ..TINY
        },
        Clause::StartFromAllDirty
        | Clause::ResumeOnFailure
        | Clause::TwoPhaseHandOver
        | Clause::NeverSendVoid
        | Clause::OperatorDecides
        | Clause::KeepHeld
        | Clause::LookFirst => Setup {
            failures: 1,
            moves: 0,
            ..TINY
        },
        Clause::RoundInward => Setup {
            pages: 2,
            ragged: true,
            ..TINY
        },
        Clause::FreshIds | Clause::SayDoneAtStart => Setup {
            failures: 1,
            deaths: 1,
            ..TINY
        },
        Clause::ForgetHoles => Setup {
            holes: true,
            background: 1,
            ..ZEROED
        },
        Clause::FlushTables => Setup {
            tables: true,
            background: 1,
            rounds: 2,
            ..ZEROED
        },
        Clause::ClaimBeforeCopy => Setup {
            background: 1,
            ..TINY
        },
        Clause::KeepLent | Clause::LetGo => Setup {
            local: true,
            moves: 0,
            ..TINY
        },
        Clause::GiveLentBack => Setup {
            local: true,
            failures: 1,
            moves: 0,
            ..TINY
        },
        Clause::DrainChannels => Setup {
            channels: 2,
            ..TINY
        },
        Clause::NoticeDeadChannels => Setup {
            channels: 2,
            failures: 1,
            moves: 0,
            ..TINY
        },
    };
    let property = match clause {
        Clause::KeepMemory | Clause::KeepLent | Clause::GiveLentBack => SOURCE_COMPLETE,
        Clause::LogDiscards | Clause::DiscardAtDestination => NO_STALE_PAGE,
        Clause::SayDone | Clause::SayDoneAtStart => MEMORY_GIVEN_BACK,
        Clause::StopLogging => LOGGING_STOPS,
        Clause::ResumeOnFailure | Clause::OperatorDecides | Clause::KeepHeld => MIGRATION_ENDS,
        Clause::TwoPhaseHandOver | Clause::NeverSendVoid | Clause::LookFirst => ONE_OWNER,
        _ => NO_PAGE_LOST,
    };
    Case {
        name: clause.words(),
        migration: Migration {
            setup,
            rule: Rule::without(&[clause]),
        },
        property,
    }
}

/// What other hypervisors do, as far as the model's switches can express it.
pub fn others() -> Vec<Case> {
    let case = |name, setup, off: &[_], property| Case {
        name,
        migration: Migration {
            setup,
            rule: Rule::without(off),
        },
        property,
    };
    // A hint counts at once. It clears the page's bit in KVM's log if the bit was read and not cleared yet.
    let qemu = [
        Clause::ArmFirst,
        Clause::KeepLog,
        Clause::DiscardAtDestination,
    ];
    let qemu_setup = Setup {
        clearing: Clearing::PageByPage,
        ..TINY
    };
    vec![
        case(
            "QEMU: a hint clears KVM's log",
            qemu_setup,
            &qemu,
            NO_PAGE_LOST,
        ),
        case(
            "Firecracker: a hint discards the guest's memory",
            TINY,
            &[Clause::KeepMemory],
            SOURCE_COMPLETE,
        ),
        case(
            "a hint is taken after the pause",
            TINY,
            &[Clause::NoHintAfterPause],
            NO_PAGE_LOST,
        ),
        case(
            "a background harvest leaves the epoch open",
            Setup {
                background: 1,
                ..TINY
            },
            &[Clause::CloseBeforeHarvest],
            NO_PAGE_LOST,
        ),
    ]
}

/// The whole rule, with everybody who can take part. No property may be broken.
pub fn whole() -> Vec<(&'static str, Setup)> {
    let small = Setup::SMALL;
    vec![
        ("driver", Setup { moves: 6, ..small }),
        (
            "background harvests, pages armed one by one",
            Setup {
                clearing: Clearing::PageByPage,
                background: 1,
                moves: 4,
                ..small
            },
        ),
        (
            "other writers, discards",
            Setup {
                back_end_writes: 1,
                own_writes: 1,
                reporting: true,
                moves: 3,
                ..small
            },
        ),
        (
            "agent and driver",
            Setup {
                agent: true,
                ..small
            },
        ),
        (
            "writes logged in a ring that is soon full, background and early harvests",
            Setup {
                ring: 1,
                background: 1,
                early: 1,
                moves: 5,
                ..small
            },
        ),
        (
            "two channels",
            Setup {
                channels: 2,
                background: 1,
                moves: 4,
                ..small
            },
        ),
        (
            "two channels, pages discarded that are hinted after they were sent",
            Setup {
                channels: 2,
                late_discards: true,
                background: 1,
                moves: 4,
                ..small
            },
        ),
        (
            "early harvests, zeroed pages, pages discarded that are hinted after they were sent",
            Setup {
                late_discards: true,
                init_on_free: true,
                early: 1,
                background: 1,
                moves: 4,
                ..small
            },
        ),
        (
            "early harvests, two channels",
            Setup {
                early: 2,
                channels: 2,
                moves: 4,
                ..small
            },
        ),
        (
            "two channels, either of which may die",
            Setup {
                channels: 2,
                failures: 1,
                rounds: 1,
                moves: 3,
                ..small
            },
        ),
        (
            "two channels, holes, records that wait in a table and go over the first channel",
            Setup {
                channels: 2,
                holes: true,
                tables: true,
                background: 1,
                init_on_free: true,
                hints: false,
                driver: false,
                moves: 4,
                ..small
            },
        ),
        (
            "background harvests, holes, records that wait in tables",
            Setup {
                holes: true,
                tables: true,
                background: 1,
                init_on_free: true,
                moves: 4,
                ..small
            },
        ),
        (
            "failures, a device that dies, an impatient migrator",
            Setup {
                failures: 1,
                deaths: 1,
                impatience: 1,
                rounds: 1,
                moves: 3,
                ..small
            },
        ),
        (
            "a link that dies in the hand-over, twice, and an operator",
            Setup {
                failures: 2,
                rounds: 1,
                moves: 3,
                ..small
            },
        ),
        (
            "memory lent or sent, a link that dies in the hand-over, twice, and an operator",
            Setup {
                local: true,
                failures: 2,
                rounds: 1,
                moves: 2,
                ..small
            },
        ),
        (
            "memory lent or sent, other writers, discards, a device that dies",
            Setup {
                local: true,
                failures: 1,
                deaths: 1,
                reporting: true,
                back_end_writes: 1,
                own_writes: 1,
                pages: 1,
                rounds: 1,
                moves: 3,
                ..small
            },
        ),
        (
            "ragged hints, free pages that are zero",
            Setup {
                ragged: true,
                init_on_free: true,
                ..small
            },
        ),
        (
            "everybody, one page, one round",
            Setup {
                pages: 1,
                moves: 3,
                rounds: 1,
                failures: 1,
                deaths: 1,
                agent: true,
                reporting: true,
                back_end_writes: 1,
                ..small
            },
        ),
    ]
}
