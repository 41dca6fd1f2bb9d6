// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What somebody who restores makes of a file.

use super::clause::{FileClause, FileRule};
use super::disk::{Content, Id};
use crate::pages::{Page, PerPage};

/// The result of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The file is not a complete snapshot, and that is seen before anything is restored.
    Refused,
    /// The file was taken for complete, but a page does not have its checksum.
    Damaged(Page),
    /// All was restored.
    Whole {
        /// The snapshot.
        id: Id,
        /// What each page contains.
        content: PerPage<u8>,
    },
}

/// Restores from `file`.
pub fn load(rule: FileRule, file: &Content) -> Loaded {
    let id = file.header;
    let is_bound = rule.holds(FileClause::BindToSnapshot);
    let belongs = |other: Id| other != 0 && (other == id || !is_bound);
    if id == 0 || !belongs(file.commit) || !belongs(file.bitmap.id) {
        return Loaded::Refused;
    }
    if file.bitmap.rotten && rule.holds(FileClause::CheckBitmap) {
        return Loaded::Refused;
    }
    let mut content = PerPage::default();
    for page in file.bitmap.has.iter() {
        let index = page.index();
        let here = file.pages[index];
        // A page that was never written has no right checksum: that of zeros is not zero.
        let is_right = here != 0 && file.checksums[index] == here;
        if !is_right && rule.holds(FileClause::CheckPages) {
            return Loaded::Damaged(page);
        }
        content[index] = here;
    }
    Loaded::Whole { id, content }
}
