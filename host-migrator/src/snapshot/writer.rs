// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes a snapshot, in the order of `spec/file-format.md`.

use std::fmt;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use spec::file::{
    BITMAP_BLOCK_BYTES, BITMAP_BLOCK_WORDS, BitmapBlock, Commit, DESCRIPTION_AT, Header, Places,
    REGIONS_AT, Sizes, SnapshotId, StateHeader, page_checksum,
};
use spec::hint_map::word_masks;
use spec::stream::Totals;
use spec::{PAGE_SIZE, PageRange};

use super::error::SnapshotError;
use super::slots::Slots;
use super::storage::Storage;
use crate::memory::layout::Layout;
use crate::vm::state::MachineState;

/// Bytes of the page bitmap that are written at once.
const BITMAP_BYTES: usize = 256 * BITMAP_BLOCK_BYTES;

/// A snapshot that is being written. Dropped before [`SnapshotWriter::finish`], it leaves none.
pub struct SnapshotWriter {
    storage: Box<dyn Storage>,
    id: SnapshotId,
    places: Places,
    slots: Slots,
    /// A bit for each slot that has a page.
    bits: Vec<u64>,
    /// Checksums of the pages of one run.
    checksums: Vec<u8>,
}

/// A snapshot that is complete, and on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// Its number.
    pub id: SnapshotId,
    /// Pages in it.
    pub pages: u64,
    /// Bytes from the header to the end of the commit record, holes included.
    pub length: u64,
}

impl SnapshotWriter {
    /// Begins a snapshot of a guest whose memory has this `layout` and which needs the machine of this `description`. A snapshot
    /// that is in the same place is lost from here on.
    ///
    /// # Errors
    /// [`SnapshotError`] if no file can hold such a guest, or it cannot be written.
    pub fn begin(
        storage: Box<dyn Storage>,
        layout: &Layout,
        description: &[u8],
    ) -> Result<Self, SnapshotError> {
        let table = layout.to_bytes();
        let sizes = Sizes {
            pages: layout.pages(),
            // A size that does not fit is refused as too large.
            regions: u32::try_from(layout.regions().len()).unwrap_or(u32::MAX),
            description_bytes: u32::try_from(description.len()).unwrap_or(u32::MAX),
        };
        let mut id = [0; SnapshotId::BYTES];
        // So few bytes come at once.
        let random = getrandom(&mut id, GetRandomFlags::empty()).map_err(io::Error::from);
        random.map_err(SnapshotError::io("choose a number for", storage.path()))?;
        let header = Header {
            id: SnapshotId::new(id),
            sizes,
            regions_crc: crc32fast::hash(&table),
            description_crc: crc32fast::hash(description),
        };
        let places = sizes.places().map_err(SnapshotError::Guest)?;
        let bytes = header.to_bytes().map_err(SnapshotError::Guest)?;
        let mut writer = Self {
            storage,
            id: header.id,
            places,
            slots: Slots::new(layout.clone()),
            bits: vec![0; sizes.pages.div_ceil(64) as usize],
            checksums: Vec::new(),
        };
        writer.write(&bytes, 0)?;
        if writer.storage.is_in_place() {
            // Before anything of the old snapshot is touched: its header would make it look whole.
            writer.sync()?;
            let (at, end) = (places.bitmap_at, places.state_at);
            writer.give_back(at, end - at)?;
        }
        writer.write(&table, REGIONS_AT)?;
        writer.write(description, DESCRIPTION_AT)?;
        Ok(writer)
    }

    /// Writes `content` as the pages of `range`, which are in one region. Pages that are there are replaced.
    ///
    /// # Errors
    /// [`SnapshotError`] if they cannot be written.
    ///
    /// # Panics
    /// If `content` has another size than the pages.
    pub fn pages(&mut self, range: PageRange, content: &[u8]) -> Result<(), SnapshotError> {
        assert_eq!(content.len() as u64, range.bytes());
        let slot = self.slots.of(range)?;
        self.checksums.clear();
        let (pages, _) = content.as_chunks();
        let checksums = pages.iter().map(page_checksum);
        self.checksums.extend(checksums.flat_map(u32::to_le_bytes));
        self.write(content, self.places.page(slot))?;
        let checksums = std::mem::take(&mut self.checksums);
        let written = self.write(&checksums, self.places.checksum(slot));
        self.checksums = checksums;
        written?;
        for (index, mask) in masks(slot, range) {
            self.bits[index] |= mask;
        }
        Ok(())
    }

    /// The pages of `range`, which are in one region, are zero. If some are in the file, they are taken out, and their room is
    /// given back.
    ///
    /// # Errors
    /// [`SnapshotError`] if the file cannot be changed.
    pub fn remove(&mut self, range: PageRange) -> Result<(), SnapshotError> {
        let slot = self.slots.of(range)?;
        // Only from the first to the last page that is there: a run of zeros may be the whole of memory.
        let mut there: Option<(u64, u64)> = None;
        for (index, mask) in masks(slot, range) {
            let taken = self.bits[index] & mask;
            if taken != 0 {
                self.bits[index] &= !mask;
                let word = index as u64 * 64;
                let first = word + u64::from(taken.trailing_zeros());
                let end = word + u64::from(64 - taken.leading_zeros());
                there = Some((there.map_or(first, |(first, _)| first), end));
            }
        }
        match there {
            Some((first, end)) => {
                self.give_back(self.places.page(first), (end - first) * PAGE_SIZE)
            }
            None => Ok(()),
        }
    }

    /// Waits until everything that was written so far is on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`] if something is not; the snapshot is lost then.
    pub fn sync(&mut self) -> Result<(), SnapshotError> {
        let synced = self.storage.sync();
        synced.map_err(SnapshotError::io("write", self.storage.path()))
    }

    /// Completes the snapshot with the machine's `state` and the `totals` of what was written. When this returns, it is on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`] if it cannot be completed; there is no new snapshot then.
    pub fn finish(mut self, state: &MachineState, totals: Totals) -> Result<Saved, SnapshotError> {
        let pages = self.write_bitmap()?;
        let (end, state_bytes) = self.write_state(state)?;
        self.sync()?;
        let commit = Commit {
            sections: state.sections().len() as u32,
            state_bytes,
            pages,
            length: end + spec::file::ENTRY_BYTES as u64,
            totals,
        };
        self.write(&commit.to_bytes(self.id), end)?;
        self.sync()?;
        let published = self.storage.publish();
        published.map_err(SnapshotError::io("complete", self.storage.path()))?;
        Ok(Saved {
            id: self.id,
            pages,
            length: commit.length,
        })
    }

    /// Writes the page bitmap. Returns how many pages it has.
    fn write_bitmap(&mut self) -> Result<u64, SnapshotError> {
        let bits = std::mem::take(&mut self.bits);
        let mut bytes = Vec::with_capacity(BITMAP_BYTES);
        let mut at = self.places.bitmap_at;
        let mut pages = 0;
        for (number, words) in (0..).zip(bits.chunks(BITMAP_BLOCK_WORDS)) {
            let mut block = BitmapBlock::EMPTY;
            block.words[..words.len()].copy_from_slice(words);
            pages += u64::from(block.pages());
            bytes.extend(block.to_bytes(self.id, number));
            if bytes.len() == BITMAP_BYTES {
                self.write(&bytes, at)?;
                at += bytes.len() as u64;
                bytes.clear();
            }
        }
        self.write(&bytes, at)?;
        Ok(pages)
    }

    /// Writes the machine's state. Returns where it ends, and how many bytes its parts have.
    fn write_state(&mut self, state: &MachineState) -> Result<(u64, u64), SnapshotError> {
        let mut at = self.places.state_at;
        let mut total = 0;
        for section in state.sections() {
            let payload = [section.name.as_bytes(), &section.bytes].concat();
            let header = StateHeader {
                version: section.version,
                name_bytes: section.name.len() as u32,
                length: section.bytes.len() as u64,
                payload_crc: crc32fast::hash(&payload),
            };
            let bytes = [&header.to_bytes(self.id)[..], &payload].concat();
            self.write(&bytes, at)?;
            at += bytes.len() as u64;
            total += header.length;
        }
        Ok((at, total))
    }

    fn write(&mut self, bytes: &[u8], at: u64) -> Result<(), SnapshotError> {
        let written = self.storage.write(bytes, at);
        written.map_err(SnapshotError::io("write", self.storage.path()))
    }

    fn give_back(&mut self, at: u64, length: u64) -> Result<(), SnapshotError> {
        let given = self.storage.give_back(at, length);
        given.map_err(SnapshotError::io("give room back in", self.storage.path()))
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("storage", &self.storage)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The words with the bits of the pages of `range`, whose slots begin with `slot`, and which bits these are.
fn masks(slot: u64, range: PageRange) -> impl Iterator<Item = (usize, u64)> {
    let slots = PageRange::new(slot, range.count());
    slots.into_iter().flat_map(word_masks)
}
