// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files and their folder. What is written is in the page cache first; it reaches the disk block by block, in any order.

use std::fmt;

use crate::pages::{MAX_PAGES, ModelPages, Page, PerPage};

/// The number of a snapshot. 0: there is none.
pub type Id = u8;
/// The snapshot that was there before.
pub const OLD: Id = 1;
/// What every page of the old snapshot contains.
pub const OLD_CONTENT: u8 = 90;
/// What a rotten page contains.
pub const ROTTEN: u8 = 99;
/// A block that was reserved and not written. It reads as zeros.
pub const RESERVED: u8 = 98;
/// Files that there can be: the old one, and one for each saver.
pub const MAX_FILES: usize = 3;

/// A block of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Block {
    /// The header.
    Header,
    /// The page bitmap.
    Bitmap,
    /// The commit record.
    Commit,
    /// A page.
    Page(Page),
    /// The checksum of a page.
    Checksum(Page),
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Bitmap => f.write_str("the bitmap"),
            Self::Commit => f.write_str("the commit record"),
            Self::Page(page) => write!(f, "{page}"),
            Self::Checksum(page) => write!(f, "the checksum of {page}"),
        }
    }
}

/// The page bitmap of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bitmap {
    /// The snapshot that it belongs to; 0 if it was never written.
    pub(crate) id: Id,
    /// The pages that are in the file.
    pub(crate) has: ModelPages,
    /// Its checksum is wrong.
    pub(crate) rotten: bool,
}

/// What a file contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Content {
    /// The snapshot that the header names.
    pub(crate) header: Id,
    pub(crate) bitmap: Bitmap,
    /// The snapshot that the commit record names.
    pub(crate) commit: Id,
    /// The pages; 0: there is no block, and it reads as zero.
    pub(crate) pages: PerPage<u8>,
    /// The checksums of the pages. In the model a checksum is the content itself.
    pub(crate) checksums: PerPage<u8>,
}

/// A file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct File {
    /// As it reads now.
    pub(crate) cache: Content,
    /// As it reads after a power cut.
    pub(crate) disk: Content,
    /// Blocks that were written and are not on the disk yet.
    dirty: u16,
    /// A write was lost, and nobody has been told yet.
    pub(crate) error: bool,
    /// The saver that has locked it.
    pub(crate) locked_by: Option<u8>,
}

/// The file of each name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Folder {
    /// The file with the final name.
    pub(crate) complete: Option<u8>,
    /// The file that is being written.
    pub(crate) partial: Option<u8>,
}

/// All files, and their folder in the page cache and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Disk {
    pub(crate) files: [File; MAX_FILES],
    pub(crate) made: u8,
    pub(crate) folder: Folder,
    pub(crate) folder_on_disk: Folder,
}

impl Block {
    /// Every block of a file with `pages` pages.
    pub(crate) fn all(pages: u8) -> impl Iterator<Item = Self> {
        let pages = ModelPages::all(pages);
        [Self::Header, Self::Bitmap, Self::Commit]
            .into_iter()
            .chain(pages.iter().map(Self::Page))
            .chain(pages.iter().map(Self::Checksum))
    }

    fn bit(self) -> u16 {
        let index = match self {
            Self::Header => 0,
            Self::Bitmap => 1,
            Self::Commit => 2,
            Self::Page(page) => 3 + page.index(),
            Self::Checksum(page) => 3 + MAX_PAGES + page.index(),
        };
        1 << index
    }
}

impl Content {
    /// A complete snapshot `id` whose pages all contain `content`.
    pub(crate) fn complete(id: Id, pages: u8, content: u8) -> Self {
        let has = ModelPages::all(pages);
        let mut file = Self {
            header: id,
            bitmap: Bitmap {
                id,
                has,
                rotten: false,
            },
            commit: id,
            ..Self::default()
        };
        for page in has.iter() {
            file.pages[page.index()] = content;
            file.checksums[page.index()] = content;
        }
        file
    }

    fn copy(&mut self, from: &Self, block: Block) {
        match block {
            Block::Header => self.header = from.header,
            Block::Bitmap => self.bitmap = from.bitmap,
            Block::Commit => self.commit = from.commit,
            Block::Page(page) => self.pages[page.index()] = from.pages[page.index()],
            Block::Checksum(page) => self.checksums[page.index()] = from.checksums[page.index()],
        }
    }
}

impl File {
    /// A file that is on the disk with this content.
    pub(crate) fn on_disk(content: Content) -> Self {
        Self {
            cache: content,
            disk: content,
            ..Self::default()
        }
    }

    /// Changes `block` in the page cache.
    pub(crate) fn write(&mut self, block: Block, change: impl FnOnce(&mut Content)) {
        change(&mut self.cache);
        self.dirty |= block.bit();
    }

    /// Whether `block` was written and is not on the disk yet.
    pub(crate) fn is_dirty(&self, block: Block) -> bool {
        self.dirty & block.bit() != 0
    }

    /// `block` reaches the disk.
    pub(crate) fn write_back(&mut self, block: Block) {
        self.disk.copy(&self.cache, block);
        self.dirty &= !block.bit();
    }

    /// The disk loses the write of `block`. The kernel does not try again.
    pub(crate) fn lose(&mut self, block: Block) {
        self.dirty &= !block.bit();
        self.error = true;
    }

    /// Syncs the file. False if a write was lost before; the next call does not know of that.
    pub(crate) fn sync(&mut self, pages: u8) -> bool {
        for block in Block::all(pages) {
            if self.is_dirty(block) {
                self.write_back(block);
            }
        }
        !std::mem::take(&mut self.error)
    }
}

impl Disk {
    /// The file with the final name.
    pub(crate) fn complete(&self) -> Option<&File> {
        self.folder
            .complete
            .map(|file| &self.files[usize::from(file)])
    }

    /// A new, empty file.
    pub(crate) fn make(&mut self) -> u8 {
        let file = self.made;
        self.made += 1;
        file
    }

    /// Everything that is not on the disk is lost.
    pub(crate) fn cut(&mut self) {
        self.folder = self.folder_on_disk;
        for file in &mut self.files {
            *file = File::on_disk(file.disk);
        }
    }
}
