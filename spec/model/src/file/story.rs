// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A path to a broken property, as a story in plain words.

use stateright::{Checker, Model};

use super::disk::{OLD_CONTENT, ROTTEN};
use super::loader::Loaded;
use super::properties;
use super::saver::{Saver, SaverAction, Step, Write};
use super::state::{FileAction, FileState, Saving};
use crate::pages::{ModelPages, Page};
use crate::told::{Exhausted, Told};

/// The shortest path to a broken property.
pub type FileStory = Told<FileAction>;

impl Saving {
    /// Looks for the shortest path to a state that breaks `property`.
    pub fn look_for_story(self, property: &'static str) -> Option<FileStory> {
        Told::look_for(self, property, sentence, |model, last| {
            moral(model, property, last)
        })
    }

    /// Visits every state that can be reached. The model succeeds if a save completes on some path.
    pub fn exhaust(self) -> Exhausted {
        let checker = self.checker().spawn_dfs().join();
        Exhausted::of(&checker, properties::A_SAVE_COMPLETES)
    }
}

/// What `action` did between `before` and `after`.
pub(crate) fn sentence(
    model: &Saving,
    before: &FileState,
    action: FileAction,
    after: &FileState,
) -> String {
    match action {
        FileAction::GuestWrites(page) => {
            format!("The guest writes version {} into {page}.", after.version)
        }
        FileAction::GuestFrees(page) => format!("The guest gives {page} up: it is zero now."),
        FileAction::Saver(index, action) => of_saver(model, before, index, action, after),
        FileAction::Kill(index) => format!("{} is killed.", saver(model, index)),
        FileAction::WriteBack(_, block) => capital(&format!("{block} reaches the disk.")),
        FileAction::WriteBackFolder => "The folder reaches the disk.".into(),
        FileAction::Lose(_, block) => format!("The disk fails to write {block}."),
        FileAction::Cut => "The power is cut.".into(),
        FileAction::Rot(block) => capital(&format!("{block} rots on the disk.")),
    }
}

fn of_saver(
    model: &Saving,
    before: &FileState,
    index: u8,
    action: SaverAction,
    after: &FileState,
) -> String {
    let who = saver(model, index);
    let is = &after.savers[usize::from(index)];
    let was = &before.savers[usize::from(index)];
    let what = match action {
        SaverAction::Open if after.disk.made > before.disk.made => "makes a new file".to_string(),
        SaverAction::Open if Some(is.file) == before.disk.folder.complete => {
            "opens the old snapshot's file".into()
        }
        SaverAction::Open => "opens the file that is being written".into(),
        SaverAction::Lock if is.step == Step::Refused => {
            "finds the file locked, and gives up".into()
        }
        SaverAction::Lock if after.disk.files[usize::from(is.file)].locked_by == Some(index) => {
            "locks the file".into()
        }
        SaverAction::Lock => "does not ask whether another saver has the file".into(),
        SaverAction::LookAgain if is.step == Step::New => {
            "sees that the name means another file now, and begins again".into()
        }
        SaverAction::LookAgain
            if before.disk.folder.partial != Some(was.file) && !model.setup.in_place =>
        {
            "does not look whether the name still means this file".into()
        }
        SaverAction::LookAgain => "sees that the name still means this file".into(),
        SaverAction::Begin if model.setup.in_place => "writes its header over the old one".into(),
        SaverAction::Begin => "empties the file and writes its header".into(),
        SaverAction::SyncHeader => sync("the header", is.step != was.step),
        SaverAction::Empty if before.disk == after.disk => {
            "leaves the blocks of the old snapshot as they are".into()
        }
        SaverAction::Empty => "gives the blocks of the old snapshot's pages back".into(),
        SaverAction::Reserve(page) => format!("reserves a block for {page}"),
        SaverAction::Copy(page, writer) => {
            let copied = before.guest[page.index()];
            match (model.setup.writers, copied) {
                (1, 0) => format!(
                    "finds {page} zero{}",
                    done_with_zero(was, is, before, after, page)
                ),
                (1, version) => format!("writes {page}, version {version}"),
                (_, 0) => format!("finds {page} zero, and tells writer {}", writer + 1),
                (_, version) => {
                    format!("gives {page}, version {version}, to writer {}", writer + 1)
                }
            }
        }
        SaverAction::Write(writer) => {
            let who = format!("Writer {}", writer + 1);
            return match was.writers[usize::from(writer)] {
                Some(Write { page, content: 0 }) => {
                    format!(
                        "{who} hears that {page} is zero{}.",
                        done_with_zero(was, is, before, after, page)
                    )
                }
                Some(Write { page, content }) => format!("{who} writes {page}, version {content}."),
                None => format!("{who} writes nothing."),
            };
        }
        SaverAction::Stop => "stops the guest".into(),
        SaverAction::WriteBitmap => "writes the bitmap, and the guest runs on".into(),
        SaverAction::SyncPages => sync("the file", is.step != was.step),
        SaverAction::WriteCommit => "writes the commit record".into(),
        SaverAction::SyncCommit => sync("the file", is.step != was.step),
        SaverAction::Rename => "gives the file its final name".into(),
        SaverAction::SyncFolder => "syncs the folder".into(),
    };
    let and = match is.step {
        Step::Complete => ", and says that the snapshot is complete",
        Step::Failed => ", hears that a write has failed, and gives up",
        _ => "",
    };
    format!("{who} {what}{and}.")
}

/// What became of `page`, which is zero.
fn done_with_zero(
    was: &Saver,
    is: &Saver,
    before: &FileState,
    after: &FileState,
    page: Page,
) -> &'static str {
    match (was.has.has(page), is.has.has(page)) {
        (true, true) => ", and leaves its old content in the file",
        (true, false) if before.disk == after.disk => {
            ", and takes it out of the bitmap; its block stays"
        }
        (true, false) => ", takes it out of the bitmap and gives its block back",
        (false, _) => "; nothing of it is in the file",
    }
}

fn sync(what: &str, succeeded: bool) -> String {
    match succeeded {
        true => format!("syncs {what}"),
        false => format!("syncs {what}, hears that a write has failed, and tries again"),
    }
}

fn saver(model: &Saving, index: u8) -> String {
    match model.setup.savers {
        1 => "The saver".into(),
        _ => format!("Saver {}", index + 1),
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

/// What is wrong at the end of the story.
fn moral(model: &Saving, property: &'static str, last: &FileState) -> String {
    let content = |content| match content {
        0 => "zeros".to_string(),
        OLD_CONTENT => "what the old snapshot had".into(),
        ROTTEN => "what nobody has written".into(),
        version => format!("version {version}"),
    };
    let restored = properties::restored(model, last);
    match (property, restored) {
        (properties::RESTORED_RIGHT, Loaded::Whole { id, content: found }) => {
            match properties::wanted(model, last, id) {
                None => "The file is restored, although its save never came to an end.".into(),
                Some(wanted) => {
                    let pages = ModelPages::all(model.setup.pages);
                    let wrong = pages
                        .iter()
                        .find(|page| found[page.index()] != wanted[page.index()]);
                    wrong.map_or_else(String::new, |page| {
                        let index = page.index();
                        format!(
                            "{} is restored with {}. The guest had {} there when it was saved.",
                            capital(&page.to_string()),
                            content(found[index]),
                            content(wanted[index])
                        )
                    })
                }
            }
        }
        (properties::COMPLETE_IS_WHOLE, Loaded::Damaged(page)) => {
            format!("The file is taken for complete, and {page} is damaged.")
        }
        (properties::SNAPSHOT_STAYS, Loaded::Whole { .. }) => {
            "The new snapshot was called complete, and the old one is restored.".into()
        }
        (properties::SNAPSHOT_STAYS, Loaded::Damaged(page)) => {
            format!("The snapshot was called complete, and {page} is damaged.")
        }
        (properties::SNAPSHOT_STAYS, Loaded::Refused) => {
            "There was a complete snapshot, and now there is none.".into()
        }
        (properties::FILE_IS_SMALL, _) => {
            "The file has a block for a page that is not in the snapshot.".into()
        }
        (property, _) => format!("Broken: {property}."),
    }
}
