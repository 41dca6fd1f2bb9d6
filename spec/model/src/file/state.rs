// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of guest, savers and disk together, and the steps from state to state.

use stateright::{Model, Property};

use super::clause::FileRule;
use super::disk::{Block, Content, Disk, File, Folder, MAX_FILES, OLD, OLD_CONTENT, ROTTEN};
use super::properties;
use super::saver::{self, Saver, SaverAction, Step};
use super::setup::FileSetup;
use super::story;
use crate::pages::{ModelPages, Page, PerPage};

/// A save to be checked: who takes part, and which clauses hold.
#[derive(Clone, Copy, Debug)]
pub struct Saving {
    /// Who takes part, and what may go wrong.
    pub setup: FileSetup,
    /// The clauses that hold.
    pub rule: FileRule,
}

/// The state of everything at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileState {
    /// What each page of the guest contains; 0: it is zero, or free.
    pub(crate) guest: PerPage<u8>,
    /// The last version that was written.
    pub(crate) version: u8,
    pub(crate) moves: u8,
    pub(crate) savers: [Saver; 2],
    pub(crate) disk: Disk,
    pub(crate) cut: bool,
    pub(crate) kills: u8,
    pub(crate) lost_writes: u8,
    pub(crate) rot: u8,
}

/// A step of one participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileAction {
    /// The guest writes a page.
    GuestWrites(Page),
    /// The guest gives a page up, or fills it with zeros.
    GuestFrees(Page),
    /// A saver's.
    Saver(u8, SaverAction),
    /// A saver is killed.
    Kill(u8),
    /// A block reaches the disk.
    WriteBack(u8, Block),
    /// The folder reaches the disk.
    WriteBackFolder,
    /// The disk loses a block that was to be written.
    Lose(u8, Block),
    /// The power is cut.
    Cut,
    /// A block of the complete snapshot rots.
    Rot(Block),
}

impl FileState {
    pub(crate) fn savers(&self, setup: &FileSetup) -> impl Iterator<Item = (u8, &Saver)> {
        (0..setup.savers).zip(&self.savers)
    }

    fn guest_runs(&self) -> bool {
        !self.cut && !self.savers.iter().any(|saver| saver.step == Step::Stopped)
    }

    fn guest_changes(&mut self, page: Page, content: u8) {
        self.moves -= 1;
        self.guest[page.index()] = content;
        for saver in &mut self.savers {
            saver.pending.insert(page);
        }
    }
}

impl Model for Saving {
    type State = FileState;
    type Action = FileAction;

    fn init_states(&self) -> Vec<FileState> {
        let setup = &self.setup;
        let mut guest = PerPage::default();
        for page in ModelPages::all(setup.pages).iter() {
            guest[page.index()] = 1;
        }
        let mut files = [File::default(); MAX_FILES];
        files[0] = File::on_disk(Content::complete(OLD, setup.pages, OLD_CONTENT));
        let folder = Folder {
            complete: Some(0),
            partial: None,
        };
        vec![FileState {
            guest,
            version: 1,
            moves: setup.moves,
            savers: [Saver::new(setup.pages); 2],
            disk: Disk {
                files,
                made: 1,
                folder,
                folder_on_disk: folder,
            },
            cut: false,
            kills: setup.kills,
            lost_writes: setup.lost_writes,
            rot: setup.rot,
        }]
    }

    fn actions(&self, state: &FileState, actions: &mut Vec<FileAction>) {
        let setup = &self.setup;
        if state.cut {
            return;
        }
        let pages = ModelPages::all(setup.pages);
        if state.moves > 0 && state.guest_runs() {
            for page in pages.iter() {
                actions.push(FileAction::GuestWrites(page));
                if state.guest[page.index()] != 0 {
                    actions.push(FileAction::GuestFrees(page));
                }
            }
        }
        for (index, saver) in state.savers(setup) {
            saver::actions(self, state, index, actions);
            if state.kills > 0 && saver.is_alive() {
                actions.push(FileAction::Kill(index));
            }
        }
        if setup.disk_matters() {
            for (number, file) in (0..state.disk.made).zip(&state.disk.files) {
                for block in Block::all(setup.pages).filter(|block| file.is_dirty(*block)) {
                    actions.push(FileAction::WriteBack(number, block));
                    if state.lost_writes > 0 {
                        actions.push(FileAction::Lose(number, block));
                    }
                }
            }
            if state.disk.folder != state.disk.folder_on_disk {
                actions.push(FileAction::WriteBackFolder);
            }
        }
        if setup.cut {
            actions.push(FileAction::Cut);
        }
        let is_complete = |saver: &Saver| saver.step == Step::Complete;
        if state.rot > 0 && state.savers(setup).any(|(_, saver)| is_complete(saver)) {
            let rotting = [Block::Bitmap]
                .into_iter()
                .chain(pages.iter().map(Block::Page));
            actions.extend(rotting.map(FileAction::Rot));
        }
    }

    fn next_state(&self, last: &FileState, action: FileAction) -> Option<FileState> {
        let mut state = *last;
        match action {
            FileAction::GuestWrites(page) => {
                state.version += 1;
                state.guest_changes(page, state.version);
            }
            FileAction::GuestFrees(page) => state.guest_changes(page, 0),
            FileAction::Saver(index, action) => saver::step(self, &mut state, index, action),
            FileAction::Kill(index) => {
                state.kills -= 1;
                saver::kill(&mut state, index);
            }
            FileAction::WriteBack(file, block) => {
                state.disk.files[usize::from(file)].write_back(block);
            }
            FileAction::WriteBackFolder => state.disk.folder_on_disk = state.disk.folder,
            FileAction::Lose(file, block) => {
                state.lost_writes -= 1;
                state.disk.files[usize::from(file)].lose(block);
            }
            FileAction::Cut => {
                state.cut = true;
                for index in 0..self.setup.savers {
                    if state.savers[usize::from(index)].is_alive() {
                        saver::kill(&mut state, index);
                    }
                }
                state.disk.cut();
            }
            FileAction::Rot(block) => {
                state.rot -= 1;
                let file = state.disk.folder.complete?;
                rot(&mut state.disk.files[usize::from(file)].cache, block);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }

    fn format_step(&self, last: &FileState, action: FileAction) -> Option<String> {
        let next = self.next_state(last, action)?;
        Some(format!(
            "{}\n\n{next:#?}",
            story::sentence(self, last, action, &next)
        ))
    }
}

fn rot(content: &mut Content, block: Block) {
    match block {
        Block::Page(page) => content.pages[page.index()] = ROTTEN,
        _ => {
            content.bitmap.has = ModelPages::EMPTY;
            content.bitmap.rotten = true;
        }
    }
}
