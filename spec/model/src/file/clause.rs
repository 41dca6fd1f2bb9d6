// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What saver and loader must do so that a snapshot file is right. Each clause has a switch.

use crate::switches::switches;

switches! {
    /// A clause about snapshot files.
    FileClause,
    /// The clauses that hold.
    FileRule;

    /// A page that has become zero or free is taken out of the bitmap.
    TakeOut "take-out" "a page that becomes zero or free is taken out of the bitmap",
    /// Its block is given back to the file system.
    Punch "punch" "the block of a page that becomes zero or free is given back",
    /// Blocks that were reserved for pages that never came are given back.
    GiveReservedBack "give-reserved-back" "what was reserved for pages that never came is given back",
    /// A page is written again only when no writer has an older version of it.
    DrainWriters "drain-writers" "a page is written again only when no writer has an older version",
    /// A restore compares each page with its checksum.
    CheckPages "check-pages" "each page has a checksum",
    /// A restore compares the bitmap with its checksum.
    CheckBitmap "check-bitmap" "the bitmap has a checksum",
    /// Bitmap and commit record carry the number of their snapshot.
    BindToSnapshot "bind-to-snapshot" "bitmap and commit record belong to one snapshot by its number",
    /// In place: the new header is on the disk before a page of the old snapshot is touched.
    NewHeaderFirst "new-header-first" "in place, the new header is on the disk before the first page",
    /// What the file had before is emptied.
    StartEmpty "start-empty" "what the file had before is given back",
    /// Pages and bitmap are on the disk before the commit record is written.
    SyncBeforeCommit "sync-before-commit" "everything is on the disk before the commit record is written",
    /// The commit record is on the disk before the file gets its final name.
    SyncBeforeRename "sync-before-rename" "the file is on the disk before it gets its final name",
    /// The file gets its final name when it is complete.
    RenameAtCommit "rename-at-commit" "the file gets its final name when it is complete",
    /// The new name is on the disk before the save says that it is complete.
    SyncFolder "sync-folder" "the folder is on the disk before the save is called complete",
    /// A sync that has failed ends the save.
    HeedFailedSync "heed-failed-sync" "a sync that failed ends the save",
    /// Two savers of one file exclude each other.
    Lock "lock" "a save locks its file",
    /// When the saver has the lock, it looks whether the file is still the one to be written.
    LookAgain "look-again" "after locking, the saver looks whether the name still means this file",
}

#[cfg(test)]
mod tests {
    use spec::clause::UnknownClause;

    use super::*;

    #[test]
    fn every_clause_is_found_by_its_name_and_no_clause_of_the_rule_has_it() {
        for clause in FileClause::ALL {
            assert_eq!(clause.name().parse(), Ok(*clause));
            assert!(clause.name().parse::<crate::Clause>().is_err());
        }
        assert_eq!("sync".parse::<FileClause>(), Err(UnknownClause));
    }
}
