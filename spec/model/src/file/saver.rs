// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A save, step by step.

use super::clause::FileClause;
use super::disk::{Bitmap, Block, File, Id, RESERVED};
use super::state::{FileAction, FileState, Saving};
use crate::pages::{ModelPages, Page, PerPage};

/// How far a save is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// It has not begun.
    #[default]
    New,
    /// The file is open.
    Opened,
    /// The file is locked.
    Locked,
    /// The lock is that of the file to be written.
    Looked,
    /// The header was written.
    Begun,
    /// The header is on the disk.
    Fenced,
    /// Pages are written.
    Copying,
    /// The guest is stopped, and the last pages are written.
    Stopped,
    /// The guest runs on, and the bitmap was written.
    Listed,
    /// Pages and bitmap are on the disk.
    Synced,
    /// The commit record was written.
    Committed,
    /// The commit record is on the disk.
    CommitSynced,
    /// The file has its final name.
    Renamed,
    /// It is complete, and the operator was told.
    Complete,
    /// Another saver writes the file.
    Refused,
    /// It has failed, and the guest runs on.
    Failed,
    /// The saver was killed, or the power was cut.
    Dead,
}

/// A page that a writer has in its hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub(crate) page: Page,
    pub(crate) content: u8,
}

/// A saver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Saver {
    pub(crate) step: Step,
    pub(crate) file: u8,
    /// Pages to be written, again or for the first time.
    pub(crate) pending: ModelPages,
    /// Pages that are in the file.
    pub(crate) has: ModelPages,
    /// Pages that blocks were reserved for.
    pub(crate) reserved: ModelPages,
    /// What each writer has in its hands.
    pub(crate) writers: [Option<Write>; 2],
    /// What the guest contained when it was stopped.
    pub(crate) wanted: Option<PerPage<u8>>,
}

/// A step of a saver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SaverAction {
    /// Opens the file, or makes it.
    Open,
    /// Locks the file.
    Lock,
    /// Looks whether the name still means the locked file.
    LookAgain,
    /// Empties the file and writes the header; in place, it writes the header.
    Begin,
    /// In place: syncs the header.
    SyncHeader,
    /// In place: gives the old snapshot's blocks back.
    Empty,
    /// Reserves the block of a page.
    Reserve(Page),
    /// Copies a page and gives it to a writer.
    Copy(Page, u8),
    /// A writer writes what it has.
    Write(u8),
    /// Stops the guest.
    Stop,
    /// Writes the bitmap, and lets the guest run on.
    WriteBitmap,
    /// Syncs pages and bitmap.
    SyncPages,
    /// Writes the commit record.
    WriteCommit,
    /// Syncs the commit record.
    SyncCommit,
    /// Gives the file its final name.
    Rename,
    /// Syncs the folder, and says that the snapshot is complete.
    SyncFolder,
}

impl Saver {
    /// The saver of a guest with `pages` pages.
    pub(crate) fn new(pages: u8) -> Self {
        Self {
            pending: ModelPages::all(pages),
            ..Self::default()
        }
    }

    /// The number of the snapshot that saver `index` writes.
    pub(crate) fn id(index: u8) -> Id {
        index + 2
    }

    /// Whether it is at work, so that it can be killed.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(
            self.step,
            Step::New | Step::Complete | Step::Refused | Step::Failed | Step::Dead
        )
    }

    fn is_drained(&self) -> bool {
        self.writers.iter().all(Option::is_none)
    }
}

pub(crate) fn actions(model: &Saving, state: &FileState, index: u8, actions: &mut Vec<FileAction>) {
    let saver = &state.savers[usize::from(index)];
    let mut add = |action| actions.push(FileAction::Saver(index, action));
    let in_place = model.setup.in_place;
    match saver.step {
        Step::New => add(SaverAction::Open),
        Step::Opened => add(SaverAction::Lock),
        Step::Locked => add(SaverAction::LookAgain),
        Step::Looked => add(SaverAction::Begin),
        Step::Begun if in_place => add(SaverAction::SyncHeader),
        Step::Fenced => add(SaverAction::Empty),
        Step::Begun | Step::Copying | Step::Stopped => {
            for page in saver.pending.iter() {
                let held = (saver.writers.iter().flatten()).any(|write| write.page == page);
                if held && model.rule.holds(FileClause::DrainWriters) {
                    continue;
                }
                for writer in 0..model.setup.writers {
                    if saver.writers[usize::from(writer)].is_none() {
                        add(SaverAction::Copy(page, writer));
                    }
                }
            }
            if model.setup.reserves && saver.step != Step::Stopped {
                let file = &state.disk.files[usize::from(saver.file)].cache;
                let empty = |page: &Page| file.pages[page.index()] == 0;
                let new = saver
                    .pending
                    .iter()
                    .filter(|page| !saver.reserved.has(*page));
                new.filter(empty)
                    .for_each(|page| add(SaverAction::Reserve(page)));
            }
            for (writer, held) in (0..).zip(saver.writers) {
                if held.is_some() {
                    add(SaverAction::Write(writer));
                }
            }
            match saver.step {
                Step::Stopped if saver.pending.is_empty() && saver.is_drained() => {
                    add(SaverAction::WriteBitmap);
                }
                Step::Stopped => {}
                _ => add(SaverAction::Stop),
            }
        }
        Step::Listed => add(SaverAction::SyncPages),
        Step::Synced => add(SaverAction::WriteCommit),
        Step::Committed => add(SaverAction::SyncCommit),
        Step::CommitSynced => add(SaverAction::Rename),
        Step::Renamed => add(SaverAction::SyncFolder),
        Step::Complete | Step::Refused | Step::Failed | Step::Dead => {}
    }
}

pub(crate) fn step(model: &Saving, state: &mut FileState, index: u8, action: SaverAction) {
    let holds = |clause| model.rule.holds(clause);
    let in_place = model.setup.in_place;
    let pages = model.setup.pages;
    let id = Saver::id(index);
    let saver = &mut state.savers[usize::from(index)];
    let file = &mut state.disk.files[usize::from(saver.file)];
    match action {
        SaverAction::Open => {
            let folder = state.disk.folder;
            let name = match in_place || !holds(FileClause::RenameAtCommit) {
                true => folder.complete,
                false => folder.partial,
            };
            saver.file = name.unwrap_or_else(|| {
                let file = state.disk.make();
                state.disk.folder.partial = Some(file);
                file
            });
            saver.step = Step::Opened;
        }
        SaverAction::Lock => {
            saver.step = Step::Locked;
            if holds(FileClause::Lock) {
                match file.locked_by {
                    Some(_) => saver.step = Step::Refused,
                    None => file.locked_by = Some(index),
                }
            }
        }
        SaverAction::LookAgain => {
            let name = match in_place || !holds(FileClause::RenameAtCommit) {
                true => state.disk.folder.complete,
                false => state.disk.folder.partial,
            };
            if name == Some(saver.file) || !holds(FileClause::LookAgain) {
                saver.step = Step::Looked;
            } else {
                file.locked_by = None;
                saver.step = Step::New;
            }
        }
        SaverAction::Begin => {
            if !in_place {
                empty(file, pages);
                file.write(Block::Bitmap, |to| to.bitmap = Bitmap::default());
                file.write(Block::Commit, |to| to.commit = 0);
            }
            file.write(Block::Header, |to| to.header = id);
            saver.step = match in_place && !holds(FileClause::NewHeaderFirst) {
                true => Step::Fenced,
                false => Step::Begun,
            };
        }
        SaverAction::SyncHeader => {
            let synced = file.sync(pages);
            advance(model, state, index, synced, Step::Fenced);
        }
        SaverAction::Empty => {
            if holds(FileClause::StartEmpty) {
                empty(file, pages);
            }
            saver.step = Step::Copying;
        }
        SaverAction::Reserve(page) => {
            file.write(Block::Page(page), |to| to.pages[page.index()] = RESERVED);
            saver.reserved.insert(page);
        }
        SaverAction::Copy(page, writer) => {
            let write = Write {
                page,
                content: state.guest[page.index()],
            };
            saver.pending.remove(page);
            if model.setup.writers == 1 {
                write_page(model, saver, file, write);
            } else {
                saver.writers[usize::from(writer)] = Some(write);
            }
        }
        SaverAction::Write(writer) => {
            if let Some(write) = saver.writers[usize::from(writer)].take() {
                write_page(model, saver, file, write);
            }
        }
        SaverAction::Stop => {
            saver.wanted = Some(state.guest);
            saver.step = Step::Stopped;
        }
        SaverAction::WriteBitmap => {
            let unused = saver.reserved.iter().filter(|page| !saver.has.has(*page));
            for page in unused.filter(|_| holds(FileClause::GiveReservedBack)) {
                file.write(Block::Page(page), |to| to.pages[page.index()] = 0);
            }
            let bitmap = Bitmap {
                id,
                has: saver.has,
                rotten: false,
            };
            file.write(Block::Bitmap, |to| to.bitmap = bitmap);
            saver.step = match holds(FileClause::SyncBeforeCommit) {
                true => Step::Listed,
                false => Step::Synced,
            };
        }
        SaverAction::SyncPages => {
            let synced = file.sync(pages);
            advance(model, state, index, synced, Step::Synced);
        }
        SaverAction::WriteCommit => {
            file.write(Block::Commit, |to| to.commit = id);
            saver.step = match in_place || holds(FileClause::SyncBeforeRename) {
                true => Step::Committed,
                false => Step::CommitSynced,
            };
        }
        SaverAction::SyncCommit => {
            let synced = file.sync(pages);
            let is_last = in_place || !holds(FileClause::RenameAtCommit);
            let next = match is_last {
                true => Step::Complete,
                false => Step::CommitSynced,
            };
            advance(model, state, index, synced, next);
        }
        SaverAction::Rename => {
            state.disk.folder.complete = Some(saver.file);
            state.disk.folder.partial = None;
            saver.step = Step::Renamed;
            if !holds(FileClause::SyncFolder) {
                complete(state, index);
            }
        }
        SaverAction::SyncFolder => {
            state.disk.folder_on_disk = state.disk.folder;
            complete(state, index);
        }
    }
}

/// Goes to step `next` if a sync has succeeded.
fn advance(model: &Saving, state: &mut FileState, index: u8, synced: bool, next: Step) {
    if !synced {
        if model.rule.holds(FileClause::HeedFailedSync) {
            fail(model, state, index);
        }
        // Otherwise the next step is the same sync once more.
        return;
    }
    state.savers[usize::from(index)].step = next;
    if next == Step::Complete {
        complete(state, index);
    }
}

fn complete(state: &mut FileState, index: u8) {
    let saver = &mut state.savers[usize::from(index)];
    saver.step = Step::Complete;
    unlock(&mut state.disk.files[usize::from(saver.file)], index);
}

/// The save has failed: its file is removed, unless it is the old one.
fn fail(model: &Saving, state: &mut FileState, index: u8) {
    let saver = &mut state.savers[usize::from(index)];
    saver.step = Step::Failed;
    if !model.setup.in_place && state.disk.folder.partial == Some(saver.file) {
        state.disk.folder.partial = None;
    }
    unlock(&mut state.disk.files[usize::from(saver.file)], index);
}

/// The saver is killed: what it has written stays, and its lock is gone.
pub(crate) fn kill(state: &mut FileState, index: u8) {
    let saver = &mut state.savers[usize::from(index)];
    saver.step = Step::Dead;
    unlock(&mut state.disk.files[usize::from(saver.file)], index);
}

fn unlock(file: &mut File, index: u8) {
    if file.locked_by == Some(index) {
        file.locked_by = None;
    }
}

/// Gives the blocks of all pages and checksums back.
fn empty(file: &mut File, pages: u8) {
    for page in ModelPages::all(pages).iter() {
        file.write(Block::Page(page), |to| to.pages[page.index()] = 0);
        file.write(Block::Checksum(page), |to| to.checksums[page.index()] = 0);
    }
}

fn write_page(model: &Saving, saver: &mut Saver, file: &mut File, write: Write) {
    let Write { page, content } = write;
    let index = page.index();
    if content != 0 {
        file.write(Block::Page(page), |to| to.pages[index] = content);
        file.write(Block::Checksum(page), |to| to.checksums[index] = content);
        saver.has.insert(page);
    } else if saver.has.has(page) && model.rule.holds(FileClause::TakeOut) {
        saver.has.remove(page);
        if model.rule.holds(FileClause::Punch) {
            file.write(Block::Page(page), |to| to.pages[index] = 0);
        }
    }
}
