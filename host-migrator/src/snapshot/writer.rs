// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes a snapshot, in the order of `spec/file-format.md`.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};
use spec::file::{
    BITMAP_BLOCK_BYTES, BITMAP_BLOCK_WORDS, Bitmap, BitmapBlock, Commit, DESCRIPTION_AT, Half,
    Header, Places, REGIONS_AT, Sizes, SnapshotId, StateHeader,
};
use spec::hint_map::word_masks;
use spec::stream::{MAX_CHANNELS, MAX_SECTION_PAGES, Totals};
use spec::{PAGE_SIZE, PageRange};

use super::checksums::Checksums;
use super::error::SnapshotError;
use super::reserved::Reserved;
use super::slots::Slots;
use super::storage::Storage;
use super::writers::{Job, Writers};
use crate::memory::layout::Layout;
use crate::memory::page_buffer::PageBuffer;
use crate::vm::state::MachineState;

/// Bytes of the page bitmap that are written at once.
const BITMAP_BYTES: usize = 256 * BITMAP_BLOCK_BYTES;

/// A snapshot that is being written. Dropped before [`SnapshotWriter::finish`], it leaves none.
///
/// What comes later about a page replaces what came before, also while threads write.
pub struct SnapshotWriter {
    storage: Arc<dyn Storage>,
    id: SnapshotId,
    places: Places,
    slots: Slots,
    /// A bit for each slot whose page is in the file, or on its way there.
    bits: Vec<u64>,
    /// In a half: a bit for each slot whose page this side has.
    known: Option<Vec<u64>>,
    checksums: Checksums,
    reserved: Reserved,
    writers: Writers,
    /// Empty buffers.
    spare: Vec<PageBuffer>,
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
        Self::begin_file(storage, layout, description, None)
    }

    /// Begins a `half`: as [`SnapshotWriter::begin`], but a page is known only if it is written
    /// ([`SnapshotWriter::pages`]), or is said to be zero ([`SnapshotWriter::remove`]).
    ///
    /// # Errors
    /// As [`SnapshotWriter::begin`].
    pub fn begin_half(
        storage: Box<dyn Storage>,
        layout: &Layout,
        description: &[u8],
        half: Half,
    ) -> Result<Self, SnapshotError> {
        Self::begin_file(storage, layout, description, Some(half))
    }

    fn begin_file(
        storage: Box<dyn Storage>,
        layout: &Layout,
        description: &[u8],
        half: Option<Half>,
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
            half,
        };
        let places = header.places().map_err(SnapshotError::Guest)?;
        let words = sizes.pages.div_ceil(64) as usize;
        let bytes = header.to_bytes().map_err(SnapshotError::Guest)?;
        let storage: Arc<dyn Storage> = storage.into();
        let writer = Self {
            writers: Writers::start(0, Arc::clone(&storage), places)?,
            storage,
            id: header.id,
            places,
            slots: Slots::new(layout.clone()),
            bits: vec![0; words],
            known: half.map(|_| vec![0; words]),
            checksums: Checksums::new(places.checksums_at),
            reserved: Reserved::default(),
            spare: Vec::new(),
        };
        writer.write(&bytes, 0)?;
        if writer.storage.is_in_place() {
            // Before anything of the old snapshot is touched: its header would make it look whole.
            writer.sync_storage()?;
            let (at, end) = (places.bitmap_at, places.state_at);
            writer.give_back(at, end - at)?;
        }
        let expected = writer.storage.expect(places.state_at);
        expected.map_err(SnapshotError::io("write", writer.storage.path()))?;
        writer.write(&table, REGIONS_AT)?;
        writer.write(description, DESCRIPTION_AT)?;
        Ok(writer)
    }

    /// Has `count` threads write the pages from now on, at most [`MAX_CHANNELS`]. With 0 they are written by whoever gives them, as
    /// at the beginning.
    ///
    /// # Errors
    /// [`SnapshotError`] if pages that were given before cannot be written, or no thread can be started.
    pub fn with_writers(mut self, count: u32) -> Result<Self, SnapshotError> {
        self.drain()?;
        let (count, storage) = (count.min(MAX_CHANNELS), Arc::clone(&self.storage));
        self.writers = Writers::start(count, storage, self.places)?;
        Ok(self)
    }

    /// Writes `content` as the pages of `range`, which are in one region. Pages that are there are replaced.
    ///
    /// # Errors
    /// [`SnapshotError`] if they, or pages before them, cannot be written.
    ///
    /// # Panics
    /// If `content` has another size than the pages.
    pub fn pages(&mut self, range: PageRange, content: &[u8]) -> Result<(), SnapshotError> {
        assert_eq!(content.len() as u64, range.bytes());
        self.slots.of(range)?;
        let most = (MAX_SECTION_PAGES * PAGE_SIZE) as usize;
        let mut first = range.first();
        for of_piece in content.chunks(most) {
            let count = of_piece.len() as u64 / PAGE_SIZE;
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.room(count).copy_from_slice(of_piece);
            if let Some(piece) = PageRange::new(first, count) {
                buffer.add(piece, self.slots.layout());
            }
            self.take(buffer)?;
            first += count;
        }
        Ok(())
    }

    /// Writes the pages of `pages`, and leaves an empty buffer there. Pages that are there are replaced.
    ///
    /// # Errors
    /// As [`SnapshotWriter::pages`].
    pub fn take_pages(&mut self, pages: &mut PageBuffer) -> Result<(), SnapshotError> {
        let empty = self.spare.pop().unwrap_or_default();
        self.take(std::mem::replace(pages, empty))
    }

    fn take(&mut self, pages: PageBuffer) -> Result<(), SnapshotError> {
        let mut slots = Vec::with_capacity(pages.runs().len());
        for run in pages.runs() {
            let slot = self.slots.of(*run)?;
            let is_there = masks(slot, *run).any(|(index, mask)| self.bits[index] & mask != 0);
            if is_there {
                self.writers.wait_for(slot, slot + run.count())?;
            }
            slots.push((slot, run.count()));
        }
        for (run, (slot, _)) in pages.runs().iter().zip(&slots) {
            for (index, mask) in masks(*slot, *run) {
                self.bits[index] |= mask;
            }
            self.know(*slot, *run);
        }
        for (slot, count) in &slots {
            self.reserve(*slot, *count)?;
        }
        self.writers.put(Job::new(pages, slots))?;
        self.note_written()
    }

    /// Finds room for `count` pages from `slot` on and for pages behind them, if it is worth it. Where the room of the disk might become
    /// too small by that for what is really written, nothing is reserved any more.
    fn reserve(&mut self, slot: u64, count: u64) -> Result<(), SnapshotError> {
        let slots = self.slots.layout().pages();
        let Some(range) = self.reserved.wanted(slot, count, slots) else {
            return Ok(());
        };
        let others = slots.saturating_sub(self.reserved.pages() + range.count());
        let (at, spare) = (self.places.page(range.first()), others * PAGE_SIZE);
        if self.storage.reserve(at, range.bytes(), spare) {
            self.reserved.add(range);
            return Ok(());
        }
        self.reserved.stop();
        self.give_unused_back()
    }

    /// Gives back what was reserved and is not needed.
    fn give_unused_back(&mut self) -> Result<(), SnapshotError> {
        let unused = self.reserved.take_unused(&self.bits);
        let mut unused = unused.into_iter();
        unused.try_for_each(|run| self.give_back(self.places.page(run.first()), run.bytes()))
    }

    /// Takes the checksums of what the threads have written, and their buffers.
    fn note_written(&mut self) -> Result<(), SnapshotError> {
        for written in self.writers.take_written() {
            let mut of_pages = &written.checksums[..];
            for (slot, count) in written.slots {
                let (of_run, rest) = of_pages.split_at(count as usize);
                let set = self.checksums.set(slot, of_run, &*self.storage);
                set.map_err(SnapshotError::io("write", self.storage.path()))?;
                of_pages = rest;
            }
            self.spare.push(written.pages);
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
        self.know(slot, range);
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
                self.writers.wait_for(first, end)?;
                self.give_back(self.places.page(first), (end - first) * PAGE_SIZE)
            }
            None => Ok(()),
        }
    }

    /// In a half, the pages of `range`, whose slots begin with `slot`, are known from now on.
    fn know(&mut self, slot: u64, range: PageRange) {
        if let Some(known) = &mut self.known {
            for (index, mask) in masks(slot, range) {
                known[index] |= mask;
            }
        }
    }

    /// From now on the pages that come were written again by a guest that runs ([`Storage::expect_rewrites`]).
    pub fn expect_rewrites(&self) {
        self.storage.expect_rewrites();
    }

    /// Waits until the threads have written all pages that were given. They may be in the page cache, and not on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`] if one cannot be written.
    pub fn drain(&mut self) -> Result<(), SnapshotError> {
        self.writers.drain()?;
        self.note_written()
    }

    /// From now on no call waits for the threads after `deadline`: it fails then. `None`: they are waited for.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.writers.set_deadline(deadline);
    }

    /// How many threads write.
    pub fn writers(&self) -> u32 {
        self.writers.count()
    }

    /// Whether all pages that were given are written.
    pub fn is_drained(&self) -> bool {
        self.writers.is_idle()
    }

    /// Bytes of pages that each thread has written.
    pub fn bytes_by_writer(&self) -> Vec<u64> {
        self.writers.bytes_by_writer()
    }

    /// Bytes of pages that were given and are not written.
    pub fn waiting_bytes(&self) -> u64 {
        self.writers.waiting_bytes()
    }

    /// Fails if a page could not be written.
    ///
    /// # Errors
    /// [`SnapshotError`] with the reason.
    pub fn check(&self) -> Result<(), SnapshotError> {
        self.writers.check()
    }

    /// Waits until everything that was given so far is on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`] if something is not; the snapshot is lost then.
    pub fn sync(&mut self) -> Result<(), SnapshotError> {
        self.drain()?;
        let flushed = self.checksums.flush(&*self.storage);
        flushed.map_err(SnapshotError::io("write", self.storage.path()))?;
        self.sync_storage()
    }

    fn sync_storage(&self) -> Result<(), SnapshotError> {
        let synced = self.storage.sync();
        synced.map_err(SnapshotError::io("write", self.storage.path()))
    }

    /// Completes the snapshot with the machine's `state` and the `totals` of what was written. When this returns, it is on the disk.
    ///
    /// # Errors
    /// [`SnapshotError`] if it cannot be completed; there is no new snapshot then.
    pub fn finish(mut self, state: &MachineState, totals: Totals) -> Result<Saved, SnapshotError> {
        self.give_unused_back()?;
        let bits = std::mem::take(&mut self.bits);
        let pages = self.write_bitmap(Bitmap::Pages, &bits)?;
        let known = match self.known.take() {
            Some(bits) => self.write_bitmap(Bitmap::Known, &bits)?,
            None => 0,
        };
        let (end, state_bytes) = self.write_state(state)?;
        self.sync()?;
        let commit = Commit {
            sections: state.sections().len() as u32,
            state_bytes,
            pages,
            length: end + spec::file::ENTRY_BYTES as u64,
            totals,
            known,
        };
        self.write(&commit.to_bytes(self.id), end)?;
        self.sync_storage()?;
        let published = self.storage.publish();
        published.map_err(SnapshotError::io("complete", self.storage.path()))?;
        Ok(Saved {
            id: self.id,
            pages,
            length: commit.length,
        })
    }

    /// Writes a bitmap. Returns how many pages it has.
    fn write_bitmap(&self, bitmap: Bitmap, bits: &[u64]) -> Result<u64, SnapshotError> {
        // A new file has zeros there; in place an old snapshot may be left.
        let leaves_out = !self.storage.is_in_place();
        let mut bytes = Vec::with_capacity(BITMAP_BYTES);
        let mut at = self.places.bitmap_block(bitmap, 0);
        let mut pages = 0;
        for (number, words) in (0..).zip(bits.chunks(BITMAP_BLOCK_WORDS)) {
            let mut block = BitmapBlock::EMPTY;
            block.words[..words.len()].copy_from_slice(words);
            let in_block = u64::from(block.pages());
            pages += in_block;
            let left_out = leaves_out && in_block == 0;
            if !left_out {
                bytes.extend(block.to_bytes(self.id, bitmap, number));
            }
            if left_out || bytes.len() == BITMAP_BYTES {
                self.write(&bytes, at)?;
                bytes.clear();
                at = self.places.bitmap_block(bitmap, number + 1);
            }
        }
        self.write(&bytes, at)?;
        Ok(pages)
    }

    /// Writes the machine's state. Returns where it ends, and how many bytes its parts have.
    fn write_state(&self, state: &MachineState) -> Result<(u64, u64), SnapshotError> {
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

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), SnapshotError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.storage.write(bytes, at);
        written.map_err(SnapshotError::io("write", self.storage.path()))
    }

    fn give_back(&self, at: u64, length: u64) -> Result<(), SnapshotError> {
        let given = self.storage.give_back(at, length);
        given.map_err(SnapshotError::io("give room back in", self.storage.path()))
    }
}

impl fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotWriter")
            .field("storage", &self.storage)
            .field("id", &self.id)
            .field("writers", &self.writers)
            .finish_non_exhaustive()
    }
}

/// The words with the bits of the pages of `range`, whose slots begin with `slot`, and which bits these are.
fn masks(slot: u64, range: PageRange) -> impl Iterator<Item = (usize, u64)> {
    let slots = PageRange::new(slot, range.count());
    slots.into_iter().flat_map(word_masks)
}
