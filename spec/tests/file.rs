// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each clause about snapshot files is needed: without it the model finds a way to lose a snapshot or a page, and with all of
//! them none.

use spec_model::file::disk::Block;
use spec_model::file::saver::SaverAction::{self, *};
use spec_model::file::state::FileAction::{
    self, Cut, GuestFrees, Lose, Rot, Saver, WriteBack, WriteBackFolder,
};
use spec_model::file::{FileClause, FileRule, Saving, catalogue};
use spec_model::pages::Page;

const A: Page = Page::A;

/// Checks that the clause's story has `actions` in this order, and that the whole rule has no story.
fn assert_needed(clause: FileClause, actions: &[FileAction]) {
    let case = catalogue::without(clause);
    let story = case.saving.look_for_story(case.property);
    let story = story.unwrap_or_else(|| panic!("no story without {clause:?}"));
    assert!(
        story.tells(actions),
        "{clause}: {actions:?} is not what happens in\n{story}"
    );
    let rule = FileRule::WHOLE;
    let whole = Saving {
        rule,
        ..case.saving
    }
    .exhaust();
    assert_eq!(whole.broken, Vec::<&str>::new(), "{clause}");
    assert!(whole.succeeds, "{clause}");
}

const fn first(action: SaverAction) -> FileAction {
    Saver(0, action)
}

#[test]
fn a_page_that_became_zero_comes_back_if_it_stays_in_the_bitmap() {
    let actions = [first(Copy(A, 0)), GuestFrees(A), first(Copy(A, 0))];
    assert_needed(FileClause::TakeOut, &actions);
}

#[test]
fn a_page_that_became_zero_takes_a_block_if_it_is_not_given_back() {
    let actions = [first(Copy(A, 0)), GuestFrees(A), first(Copy(A, 0))];
    assert_needed(FileClause::Punch, &actions);
}

#[test]
fn a_page_that_never_comes_takes_a_block_if_what_was_reserved_is_not_given_back() {
    let actions = [GuestFrees(A), first(Reserve(A)), first(Copy(A, 0))];
    let case = catalogue::without(FileClause::GiveReservedBack);
    let story = case.saving.look_for_story(case.property).unwrap();
    let in_this_order = story.tells(&actions) || story.tells(&[actions[1], actions[0], actions[2]]);
    assert!(in_this_order, "{story}");
    assert_needed(FileClause::GiveReservedBack, &[first(Reserve(A))]);
}

#[test]
fn an_older_version_is_written_last_if_writers_overtake_each_other() {
    let actions = [
        first(Copy(A, 0)),
        GuestFrees(A),
        first(Copy(A, 1)),
        first(Write(1)),
        first(Write(0)),
    ];
    assert_needed(FileClause::DrainWriters, &actions);
}

#[test]
fn rot_is_restored_if_nothing_has_a_checksum() {
    let rot = Rot(Block::Page(A));
    assert_needed(FileClause::CheckPages, &[first(SyncFolder), rot]);
    let rot = Rot(Block::Bitmap);
    assert_needed(FileClause::CheckBitmap, &[first(SyncFolder), rot]);
}

#[test]
fn an_old_commit_record_completes_a_new_snapshot_if_it_has_no_number() {
    assert_needed(FileClause::BindToSnapshot, &[first(Begin)]);
}

#[test]
fn the_old_snapshot_gets_new_pages_if_its_header_is_still_on_the_disk() {
    let reach = |block| WriteBack(0, block);
    let actions = [first(Begin), first(Copy(A, 0)), reach(Block::Page(A)), Cut];
    assert_needed(FileClause::NewHeaderFirst, &actions);
}

#[test]
fn old_pages_take_blocks_if_they_are_not_given_back_first() {
    assert_needed(FileClause::StartEmpty, &[GuestFrees(A), first(Stop)]);
}

#[test]
fn a_commit_record_reaches_the_disk_before_a_page_if_nothing_is_synced_before() {
    let actions = [first(WriteCommit), WriteBack(0, Block::Commit), Cut];
    assert_needed(FileClause::SyncBeforeCommit, &actions);
}

#[test]
fn the_new_name_reaches_the_disk_before_the_file_if_it_is_not_synced() {
    let actions = [first(Rename), WriteBackFolder, Cut];
    assert_needed(FileClause::SyncBeforeRename, &actions);
}

#[test]
fn the_old_snapshot_is_lost_early_if_the_new_one_has_its_name() {
    assert_needed(FileClause::RenameAtCommit, &[first(Begin)]);
}

#[test]
fn a_snapshot_that_was_called_complete_is_lost_if_the_folder_is_not_synced() {
    assert_needed(FileClause::SyncFolder, &[first(Rename), Cut]);
}

#[test]
fn a_write_that_was_lost_is_forgotten_if_a_failed_sync_is_tried_again() {
    let case = catalogue::without(FileClause::HeedFailedSync);
    let story = case.saving.look_for_story(case.property).unwrap();
    let lost = |action: &FileAction| matches!(action, Lose(..));
    assert!(story.actions.iter().any(lost), "{story}");
    assert_needed(FileClause::HeedFailedSync, &[first(Rename), Cut]);
}

#[test]
fn two_savers_write_into_each_others_file_if_they_do_not_lock_it() {
    assert_needed(
        FileClause::Lock,
        &[Saver(1, Begin), first(Begin), Saver(1, Rename)],
    );
}

#[test]
fn a_complete_snapshot_is_emptied_if_its_lock_is_taken_for_that_of_a_new_file() {
    let actions = [
        Saver(1, Open),
        first(Rename),
        Saver(1, Lock),
        Saver(1, Begin),
    ];
    let case = catalogue::without(FileClause::LookAgain);
    let story = case.saving.look_for_story(case.property).unwrap();
    let turned = actions.map(|action| match action {
        Saver(who, action) => Saver(1 - who, action),
        other => other,
    });
    // Either saver may be the first.
    let actions = if story.tells(&actions) {
        actions
    } else {
        turned
    };
    assert_needed(FileClause::LookAgain, &actions);
}

#[test]
fn no_order_of_events_breaks_the_whole_rule() {
    for (name, setup) in catalogue::whole() {
        let rule = FileRule::WHOLE;
        let found = Saving { setup, rule }.exhaust();
        println!("{name}: {} states, {} deep", found.states, found.depth);
        assert_eq!(found.broken, Vec::<&str>::new(), "{name}");
        assert!(found.succeeds, "{name}: no save completes");
    }
}
