// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot that is complete: everything but its pages has been read and checked.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FlockOperation, OFlags};
use spec::file::{
    BITMAP_BLOCK_BYTES, Bitmap, BitmapBlock, Commit, DESCRIPTION_AT, ENTRY_BYTES, Entry,
    FormatError, HEADER_BYTES, Header, Places, REGIONS_AT, StateHeader, regions,
};

use super::direct::{self, DirectIo};
use super::error::SnapshotError;
use super::file::{lock, open, unlock};
use super::slots::Slots;
use super::target::SnapshotTarget;
use crate::memory::layout::Layout;
use crate::vm::state::{MachineState, StateError};

/// A complete snapshot. It stays as it is while this exists: a save in the same place is refused.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) input: Input,
    pub(super) header: Header,
    pub(super) places: Places,
    pub(super) slots: Slots,
    description: Vec<u8>,
    state: MachineState,
    commit: Commit,
}

/// The file. Places count from the snapshot's header.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    pub(super) path: PathBuf,
    base: u64,
    /// The same file without the page cache, for pages.
    direct: Option<File>,
    wanted: DirectIo,
    /// The file system has refused to read without the page cache after all.
    refused: AtomicBool,
}

impl Snapshot {
    /// Opens the snapshot at `target`, and reads everything but its pages.
    ///
    /// # Errors
    /// [`SnapshotError`] if it is not a complete snapshot, is damaged, or cannot be read; [`SnapshotError::Half`] for a half.
    pub fn open(target: &SnapshotTarget) -> Result<Self, SnapshotError> {
        let snapshot = Self::open_file(target)?;
        match snapshot.header.half {
            None => Ok(snapshot),
            Some(half) => Err(SnapshotError::Half {
                path: target.path.clone(),
                side: half.side,
            }),
        }
    }

    /// As [`Snapshot::open`], for a half, too.
    pub(super) fn open_file(target: &SnapshotTarget) -> Result<Self, SnapshotError> {
        let path = &target.path;
        let file = open(path, OFlags::RDONLY)?;
        lock(&file, FlockOperation::NonBlockingLockShared, path)?;
        let input = Input {
            file,
            path: path.clone(),
            base: target.base(),
            direct: None,
            wanted: DirectIo::Off,
            refused: AtomicBool::new(false),
        };
        let mut bytes = [0; HEADER_BYTES];
        input.read(&mut bytes, 0, "header")?;
        let (header, places) = Header::from_bytes(&bytes).map_err(input.wrong())?;
        let layout = input.layout(&header)?;
        let mut description = vec![0; header.sizes.description_bytes as usize];
        input.read(&mut description, DESCRIPTION_AT, "machine's description")?;
        if crc32fast::hash(&description) != header.description_crc {
            return Err(input.wrong()(FormatError::Checksum(
                "machine's description",
            )));
        }
        let (state, commit) = input.state(&header, places)?;
        Ok(Self {
            input,
            header,
            places,
            slots: Slots::new(layout),
            description,
            state,
            commit,
        })
    }

    /// Has the pages read without the page cache, or not, as `direct_io` says. Without this they are read through the page cache.
    ///
    /// # Errors
    /// [`SnapshotError::DirectIo`] if the file system refuses what is wanted.
    pub fn with_direct_io(mut self, direct_io: DirectIo) -> Result<Self, SnapshotError> {
        let Input { file, path, .. } = &self.input;
        self.input.direct = direct::open(file, OFlags::RDONLY, path, direct_io)?;
        self.input.wanted = direct_io;
        Ok(self)
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.input.path
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where the parts of the file are.
    pub fn places(&self) -> Places {
        self.places
    }

    /// The commit record.
    pub fn commit(&self) -> &Commit {
        &self.commit
    }

    /// Where the guest's memory lies.
    pub fn layout(&self) -> &Layout {
        self.slots.layout()
    }

    /// What the guest needs of its machine ([`SourceMachine::describe`](crate::SourceMachine::describe)).
    pub fn description(&self) -> &[u8] {
        &self.description
    }

    /// The machine's state.
    pub fn state(&self) -> &MachineState {
        &self.state
    }

    /// Block `block` of `bitmap`.
    pub(super) fn bitmap_block(
        &self,
        bitmap: Bitmap,
        block: u64,
    ) -> Result<BitmapBlock, SnapshotError> {
        let mut bytes = [0; BITMAP_BLOCK_BYTES];
        let at = self.places.bitmap_block(bitmap, block);
        let part = match bitmap {
            Bitmap::Pages => "page bitmap",
            Bitmap::Known => "bitmap of known pages",
        };
        self.input.read(&mut bytes, at, part)?;
        if bytes.iter().all(|byte| *byte == 0) {
            // Not written: it has no page. If it was lost, the number of all pages tells.
            return Ok(BitmapBlock::EMPTY);
        }
        let Header { id, sizes, .. } = self.header;
        BitmapBlock::from_bytes(&bytes, id, bitmap, block, sizes.pages).map_err(self.input.wrong())
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

impl Input {
    /// Fills `bytes` with what is at `at`, in this `part` of the file.
    pub(super) fn read(
        &self,
        bytes: &mut [u8],
        at: u64,
        part: &'static str,
    ) -> Result<(), SnapshotError> {
        match self.file.read_exact_at(bytes, self.base + at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(SnapshotError::Truncated {
                    path: self.path.clone(),
                    part,
                })
            }
            read => read.map_err(SnapshotError::io("read", &self.path)),
        }
    }

    /// Fills `content`, which begins at a multiple of the page size, with the pages that are at `at`.
    pub(super) fn read_pages(&self, content: &mut [u8], at: u64) -> Result<(), SnapshotError> {
        if let Some(direct) = &self.direct
            && !self.refused.load(Ordering::Relaxed)
        {
            match direct.read_exact_at(content, self.base + at) {
                Ok(()) => return Ok(()),
                // It ends in the middle of a page, or before it: the other way tells.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) if direct::is_refusal(&error) => {
                    if !self.refused.swap(true, Ordering::Relaxed) {
                        direct::refused(&self.path, self.wanted, error.to_string())?;
                    }
                }
                Err(error) => return Err(SnapshotError::io("read", &self.path)(error)),
            }
        }
        self.read(content, at, "pages")
    }

    /// Tells the kernel how the `length` bytes at `at` will be read.
    pub(super) fn advise(&self, at: u64, length: u64, advice: Advice) {
        let length = NonZeroU64::new(length);
        if let Err(error) = rustix::fs::fadvise(&self.file, self.base + at, length, advice) {
            log::debug!("{}: no advice is taken: {error}", self.path.display());
        }
    }

    /// The file's content is wrong.
    pub(super) fn wrong(&self) -> impl FnOnce(FormatError) -> SnapshotError {
        SnapshotError::format(&self.path)
    }

    /// Where the guest's memory lies.
    fn layout(&self, header: &Header) -> Result<Layout, SnapshotError> {
        // At most 512 of them.
        let mut table = vec![0; header.sizes.regions as usize * 16];
        self.read(&mut table, REGIONS_AT, "table of memory regions")?;
        let wrong = |error| self.wrong()(error);
        if crc32fast::hash(&table) != header.regions_crc {
            return Err(wrong(FormatError::Checksum("table of memory regions")));
        }
        let ranges: Result<Vec<_>, _> = regions(&table).collect();
        let layout = Layout::new(ranges.map_err(wrong)?);
        let layout = layout.map_err(|_| wrong(FormatError::Field("regions")))?;
        let pages: u128 = (layout.regions().iter())
            .map(|region| u128::from(region.count()))
            .sum();
        if pages == u128::from(header.sizes.pages) {
            Ok(layout)
        } else {
            Err(wrong(FormatError::Field("pages")))
        }
    }

    /// The machine's state and the commit record.
    fn state(
        &self,
        header: &Header,
        places: Places,
    ) -> Result<(MachineState, Commit), SnapshotError> {
        let mut state = MachineState::default();
        let mut at = places.state_at;
        let mut total = 0;
        loop {
            let mut bytes = [0; ENTRY_BYTES];
            self.read(&mut bytes, at, "machine's state")?;
            at += ENTRY_BYTES as u64;
            let sections = state.sections().len();
            let entry = Entry::from_bytes(&bytes, header.id, sections, total);
            match entry.map_err(self.wrong())? {
                Entry::State(part) => {
                    self.part(part, at, &mut state)?;
                    at += part.payload_bytes();
                    total += part.length;
                }
                Entry::Commit(commit) => {
                    let agrees = commit.check(header.sizes, sections, total, at);
                    agrees.map_err(self.wrong())?;
                    if header.half.is_none() && commit.known != 0 {
                        let error = FormatError::Commit("number of known pages");
                        return Err(self.wrong()(error));
                    }
                    return Ok((state, commit));
                }
            }
        }
    }

    /// Adds the part of the machine's state at `at` to `state`.
    fn part(
        &self,
        part: StateHeader,
        at: u64,
        state: &mut MachineState,
    ) -> Result<(), SnapshotError> {
        // At most 16 MiB.
        let mut name = vec![0; part.payload_bytes() as usize];
        self.read(&mut name, at, "machine's state")?;
        if crc32fast::hash(&name) != part.payload_crc {
            let error = FormatError::Checksum("machine's state");
            return Err(self.wrong()(error));
        }
        let bytes = name.split_off(part.name_bytes as usize);
        let name = String::from_utf8(name).map_err(|_| self.wrong()(FormatError::State))?;
        let added = state.add(name, part.version, bytes);
        added.map_err(|source: StateError| SnapshotError::State {
            path: self.path.clone(),
            source,
        })
    }
}
