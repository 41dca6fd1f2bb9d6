// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one side of a migration has left, in a file.

use spec::file::{Bitmap, Half};

use super::error::SnapshotError;
use super::reader::Snapshot;
use super::target::SnapshotTarget;
use crate::memory::bitmap::MigrationBitmap;

/// A half that is complete: all that one side had. It stays as it is while this exists.
#[derive(Debug)]
pub struct HalfFile {
    file: Snapshot,
    half: Half,
    known: MigrationBitmap,
}

impl HalfFile {
    /// Opens the half at `target`, and reads everything but its pages.
    ///
    /// # Errors
    /// [`SnapshotError`] if it is not complete, is damaged, or cannot be read; [`SnapshotError::Whole`] for a snapshot.
    pub fn open(target: &SnapshotTarget) -> Result<Self, SnapshotError> {
        let file = Snapshot::open_file(target)?;
        let Some(half) = file.header().half else {
            return Err(SnapshotError::Whole(target.path.clone()));
        };
        let known = file.pages_of(Bitmap::Known, file.commit().known)?;
        Ok(Self { file, half, known })
    }

    /// Whose half it is, and of which hand-over.
    pub fn half(&self) -> Half {
        self.half
    }

    /// The pages that its side had. Those that are not in the file are zero.
    pub fn known(&self) -> &MigrationBitmap {
        &self.known
    }

    /// The file: what it says besides, and the pages in it.
    pub fn file(&self) -> &Snapshot {
        &self.file
    }
}
