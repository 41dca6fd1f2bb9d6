// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The smallest setup that goes wrong without each clause, and setups for the whole rule.

use super::clause::{FileClause, FileRule};
use super::properties::{COMPLETE_IS_WHOLE, FILE_IS_SMALL, RESTORED_RIGHT, SNAPSHOT_STAYS};
use super::setup::FileSetup;
use super::state::Saving;

const SMALLEST: FileSetup = FileSetup::SMALLEST;

/// A save that goes wrong without a clause, and the property that breaks.
#[derive(Clone, Copy, Debug)]
pub struct FileCase {
    /// Who takes part, and which clauses hold.
    pub saving: Saving,
    /// The property.
    pub property: &'static str,
}

/// The smallest save that goes wrong without `clause`.
pub fn without(clause: FileClause) -> FileCase {
    let in_place = FileSetup {
        in_place: true,
        ..SMALLEST
    };
    let cut = FileSetup {
        cut: true,
        ..SMALLEST
    };
    let moving = FileSetup {
        moves: 1,
        ..SMALLEST
    };
    let (setup, property) = match clause {
        FileClause::TakeOut => (moving, RESTORED_RIGHT),
        FileClause::Punch => (moving, FILE_IS_SMALL),
        FileClause::GiveReservedBack => {
            let reserves = true;
            (FileSetup { reserves, ..moving }, FILE_IS_SMALL)
        }
        FileClause::DrainWriters => {
            let writers = 2;
            (FileSetup { writers, ..moving }, RESTORED_RIGHT)
        }
        FileClause::CheckPages | FileClause::CheckBitmap => {
            (FileSetup { rot: 1, ..SMALLEST }, RESTORED_RIGHT)
        }
        FileClause::BindToSnapshot | FileClause::NewHeaderFirst => {
            let cut = true;
            (FileSetup { cut, ..in_place }, RESTORED_RIGHT)
        }
        FileClause::StartEmpty => (
            FileSetup {
                moves: 1,
                ..in_place
            },
            FILE_IS_SMALL,
        ),
        FileClause::SyncBeforeCommit => {
            let cut = true;
            (FileSetup { cut, ..in_place }, COMPLETE_IS_WHOLE)
        }
        FileClause::SyncBeforeRename | FileClause::RenameAtCommit | FileClause::SyncFolder => {
            (cut, SNAPSHOT_STAYS)
        }
        FileClause::HeedFailedSync => {
            let lost_writes = 1;
            (FileSetup { lost_writes, ..cut }, SNAPSHOT_STAYS)
        }
        FileClause::Lock | FileClause::LookAgain => {
            let savers = 2;
            (FileSetup { savers, ..SMALLEST }, SNAPSHOT_STAYS)
        }
    };
    let rule = FileRule::without(clause);
    FileCase {
        saving: Saving { setup, rule },
        property,
    }
}

/// The whole rule, with everything that can go wrong. No property may be broken.
pub fn whole() -> Vec<(&'static str, FileSetup)> {
    vec![
        (
            "a guest that writes and frees, two writers, reserved blocks",
            FileSetup {
                pages: 2,
                moves: 4,
                writers: 2,
                reserves: true,
                ..SMALLEST
            },
        ),
        (
            "a power cut, two writers",
            FileSetup {
                pages: 2,
                moves: 2,
                writers: 2,
                cut: true,
                ..SMALLEST
            },
        ),
        (
            "in place, a power cut, a disk that loses a write, rot",
            FileSetup {
                pages: 2,
                moves: 2,
                reserves: true,
                in_place: true,
                cut: true,
                lost_writes: 1,
                rot: 1,
                ..SMALLEST
            },
        ),
        (
            "two savers, either of which may be killed, a power cut, a disk that loses a write, rot",
            FileSetup {
                moves: 1,
                savers: 2,
                kills: 1,
                cut: true,
                lost_writes: 1,
                rot: 1,
                ..SMALLEST
            },
        ),
    ]
}
