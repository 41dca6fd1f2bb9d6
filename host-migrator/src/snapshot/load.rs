// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads the pages of a snapshot, in several threads. A page is used only after it was compared with its checksum.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;
use spec::file::{BITMAP_BLOCK_WORDS, Bitmap, BitmapBlock, FormatError, page_checksum};
use spec::{PAGE_SIZE, PageRange};

use super::error::SnapshotError;
use super::reader::Snapshot;
use crate::memory::aligned::AlignedBytes;
use crate::memory::layout::Layout;
use crate::memory::page_store::PageStore;
use crate::panics::text_of;

/// Words of the page bitmap in a piece of work: 4672 pages. A block of the bitmap has seven pieces.
const PIECE_WORDS: usize = BITMAP_BLOCK_WORDS / 7;
const PIECES: u64 = 7;
/// The most pages that are read at once.
pub(super) const MOST_PAGES: u64 = 256;

/// Damage that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The guest-physical address of the damaged page; for damage of the page bitmap, that of the first page that it is about.
    pub gpa: u64,
    /// What is damaged.
    pub what: String,
}

/// What a look at every page has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Pages that are in the file.
    pub pages: u64,
    /// What is damaged, by address, the first [`Verified::MOST`] of it.
    pub damage: Vec<Damage>,
    /// How much is damaged in all.
    pub damaged: u64,
}

impl Verified {
    /// The most damage that is kept.
    pub const MOST: usize = 1000;
}

/// Pages of the file.
pub(super) struct Run<'a> {
    /// The first page's slot.
    pub(super) slot: u64,
    pub(super) content: &'a [u8],
    pub(super) checksums: &'a [u8],
}

impl Snapshot {
    /// Fills `store` with the guest's memory. `threads` threads read. `loaded` is called with the number of pages that were
    /// placed since it was called last.
    ///
    /// # Errors
    /// [`SnapshotError`] if the memory does not fit, or something is damaged. The store has a part of the guest then.
    pub fn load(
        &self,
        store: &dyn PageStore,
        threads: NonZeroUsize,
        loaded: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, SnapshotError> {
        self.check_layout(store.layout())?;
        store.clear()?;
        let place = |run: Run<'_>| {
            if let Some(slot) = run.damaged().next() {
                return Err(self.damaged(slot));
            }
            let mut content = run.content;
            let pages = content.len() as u64 / PAGE_SIZE;
            for piece in self.slots.pages(run.slot, pages) {
                // The pieces have as many pages as the run.
                let (of_piece, rest) = content.split_at(piece.bytes() as usize);
                store.place(piece, of_piece)?;
                content = rest;
            }
            loaded(pages);
            Ok(())
        };
        let found = self.each_run(threads, &place, &Err)?;
        self.check_count(found)?;
        Ok(found)
    }

    /// Looks at every page, and says what is damaged. `looked` is called with the number of pages that were looked at since it was
    /// called last.
    ///
    /// # Errors
    /// [`SnapshotError`] if the file cannot be read.
    pub fn verify(
        &self,
        threads: NonZeroUsize,
        looked: &(dyn Fn(u64) + Sync),
    ) -> Result<Verified, SnapshotError> {
        let found = Mutex::new(Verified::default());
        let note = |gpa, what: String| {
            let mut found = found.lock();
            found.damaged += 1;
            if found.damage.len() < Verified::MOST {
                found.damage.push(Damage { gpa, what });
            }
        };
        let look = |run: Run<'_>| {
            for slot in run.damaged() {
                note(self.slots.gpa(slot), "page".into());
            }
            looked(run.content.len() as u64 / PAGE_SIZE);
            Ok(())
        };
        let failed = |error| match error {
            SnapshotError::Format {
                source: FormatError::Bitmap { block, .. },
                ..
            } => {
                let first = BitmapBlock::first_slot(block);
                note(
                    self.slots.gpa(first),
                    format!("block {block} of the page bitmap"),
                );
                Ok(())
            }
            error => Err(error),
        };
        let pages = self.each_run(threads, &look, &failed)?;
        let mut found = found.into_inner();
        found.pages = pages;
        found.damage.sort_by_key(|damage| damage.gpa);
        found.damage.dedup();
        if found.damaged == 0 {
            self.check_count(pages)?;
        }
        Ok(found)
    }

    /// Calls `found` with the runs of pages that are in the file, ascending. The page bitmap is checked on the way.
    ///
    /// # Errors
    /// [`SnapshotError`] if the page bitmap is damaged or cannot be read.
    pub fn pages(&self, found: &mut dyn FnMut(PageRange)) -> Result<(), SnapshotError> {
        self.pages_in(Bitmap::Pages, found)
    }

    /// As [`Snapshot::pages`], with the pages that are in `bitmap`.
    pub(super) fn pages_in(
        &self,
        bitmap: Bitmap,
        found: &mut dyn FnMut(PageRange),
    ) -> Result<(), SnapshotError> {
        let mut open: Option<(u64, u64)> = None;
        let mut close = |run: Option<(u64, u64)>| {
            if let Some((first, end)) = run {
                self.slots.pages(first, end - first).for_each(&mut *found);
            }
        };
        for block in 0..self.header.sizes.bitmap_blocks() {
            let first = BitmapBlock::first_slot(block);
            let words = self.bitmap_block(bitmap, block)?.words;
            each_run_of_bits(&words, |from, count| {
                let (from, end) = (first + from, first + from + count);
                open = match open {
                    Some((begin, before)) if before == from => Some((begin, end)),
                    before => {
                        close(before);
                        Some((from, end))
                    }
                };
                Ok::<_, SnapshotError>(())
            })?;
        }
        close(open);
        Ok(())
    }

    /// Calls `found` with every run of pages, in `threads` threads. `failed` decides what a damaged block of the bitmap means.
    /// Returns how many pages there are.
    fn each_run(
        &self,
        threads: NonZeroUsize,
        found: &(dyn Fn(Run<'_>) -> Result<(), SnapshotError> + Sync),
        failed: &(dyn Fn(SnapshotError) -> Result<(), SnapshotError> + Sync),
    ) -> Result<u64, SnapshotError> {
        let pieces = self.header.sizes.bitmap_blocks() * PIECES;
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let work = || {
            let mut buffers = Buffers::new();
            let mut pages = 0;
            while !stop.load(Ordering::Relaxed) {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    break;
                }
                let done = self.piece(piece, &mut buffers, found, failed);
                pages += done.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
            }
            Ok(pages)
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads.get()).map(|_| scope.spawn(work)).collect();
            let own = work();
            let others = others.into_iter().map(|thread| {
                let panicked = |panic: Box<_>| Err(SnapshotError::Panicked(text_of(&*panic)));
                thread.join().unwrap_or_else(panicked)
            });
            // All are waited for, whichever fails.
            let all: Vec<_> = std::iter::once(own).chain(others).collect();
            all.into_iter().sum()
        })
    }

    /// Does a piece of work: a seventh of a block of the page bitmap.
    fn piece(
        &self,
        piece: u64,
        buffers: &mut Buffers,
        found: &(dyn Fn(Run<'_>) -> Result<(), SnapshotError> + Sync),
        failed: &(dyn Fn(SnapshotError) -> Result<(), SnapshotError> + Sync),
    ) -> Result<u64, SnapshotError> {
        let (number, part) = (piece / PIECES, (piece % PIECES) as usize);
        let block = match self.bitmap_block(Bitmap::Pages, number) {
            Ok(block) => block,
            // The first of the block's pieces tells of it.
            Err(_) if part > 0 => return Ok(0),
            Err(error) => return failed(error).map(|()| 0),
        };
        let words = &block.words[part * PIECE_WORDS..][..PIECE_WORDS];
        let first = BitmapBlock::first_slot(number) + (part * PIECE_WORDS) as u64 * 64;
        let mut pages = 0;
        each_run_of_bits(words, |from, count| {
            pages += count;
            let mut slot = first + from;
            let end = slot + count;
            while slot < end {
                let count = (end - slot).min(MOST_PAGES);
                found(self.run(slot, count, buffers)?)?;
                slot += count;
            }
            Ok::<_, SnapshotError>(())
        })?;
        Ok(pages)
    }

    /// Reads `count` pages from `slot` on, and their checksums.
    fn run<'b>(
        &self,
        slot: u64,
        count: u64,
        buffers: &'b mut Buffers,
    ) -> Result<Run<'b>, SnapshotError> {
        let content = &mut buffers.content[..(count * PAGE_SIZE) as usize];
        let checksums = &mut buffers.checksums[..count as usize * 4];
        self.input.read_pages(content, self.places.page(slot))?;
        let at = self.places.checksum(slot);
        self.input.read(checksums, at, "checksums")?;
        Ok(Run {
            slot,
            content,
            checksums,
        })
    }

    /// Whether `memory` lies where the guest's does.
    pub(crate) fn check_layout(&self, memory: &Layout) -> Result<(), SnapshotError> {
        if memory == self.layout() {
            return Ok(());
        }
        Err(SnapshotError::Layout {
            path: self.path().to_owned(),
            snapshot: self.layout().pages() * PAGE_SIZE,
            regions: self.layout().regions().len(),
            machine: memory.pages() * PAGE_SIZE,
        })
    }

    pub(super) fn damaged(&self, slot: u64) -> SnapshotError {
        SnapshotError::Page {
            path: self.path().to_owned(),
            gpa: self.slots.gpa(slot),
        }
    }

    pub(super) fn check_count(&self, found: u64) -> Result<(), SnapshotError> {
        self.compare_count(found, self.commit().pages)
    }

    /// Compares the number of pages that a bitmap has with what the commit record says.
    pub(super) fn compare_count(&self, found: u64, expected: u64) -> Result<(), SnapshotError> {
        if found == expected {
            return Ok(());
        }
        Err(SnapshotError::Pages {
            path: self.path().to_owned(),
            found,
            expected,
        })
    }
}

impl Run<'_> {
    /// The slots of pages that do not have their checksum.
    pub(super) fn damaged(&self) -> impl Iterator<Item = u64> {
        let (pages, _) = self.content.as_chunks();
        let (checksums, _) = self.checksums.as_chunks();
        let pairs = (self.slot..).zip(pages.iter().zip(checksums));
        pairs.filter_map(|(slot, (page, checksum))| {
            (page_checksum(page) != u32::from_le_bytes(*checksum)).then_some(slot)
        })
    }
}

/// What a thread reads into.
struct Buffers {
    content: AlignedBytes,
    checksums: Vec<u8>,
}

impl Buffers {
    fn new() -> Self {
        Self {
            content: AlignedBytes::zeroed((MOST_PAGES * PAGE_SIZE) as usize),
            checksums: vec![0; MOST_PAGES as usize * 4],
        }
    }
}

/// Calls `found` with the first bit and the length of each run of bits in `words`.
fn each_run_of_bits<E>(
    words: &[u64],
    mut found: impl FnMut(u64, u64) -> Result<(), E>,
) -> Result<(), E> {
    let mut open: Option<u64> = None;
    for (base, word) in (0..).step_by(64).zip(words) {
        let mut at = 0;
        while at < 64 {
            // How many of the bits from here on are like the first of them.
            let rest = word >> at;
            let alike = match open {
                Some(_) => rest.trailing_ones(),
                None => rest.trailing_zeros(),
            };
            at += alike.min(64 - at);
            if at == 64 {
                break;
            }
            match open.take() {
                Some(first) => found(first, base + u64::from(at) - first)?,
                None => open = Some(base + u64::from(at)),
            }
        }
    }
    match open {
        Some(first) => found(first, words.len() as u64 * 64 - first),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(words: &[u64]) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        each_run_of_bits(words, |first, count| {
            runs.push((first, count));
            Ok::<_, ()>(())
        })
        .unwrap();
        runs
    }

    #[test]
    fn a_run_of_bits_may_go_over_several_words() {
        assert_eq!(runs(&[0, 0]), []);
        assert_eq!(runs(&[u64::MAX, u64::MAX]), [(0, 128)]);
        assert_eq!(runs(&[1 << 63, 1]), [(63, 2)]);
        assert_eq!(runs(&[5, 1 << 63]), [(0, 1), (2, 1), (127, 1)]);
    }

    proptest! {
        #[test]
        fn runs_have_every_bit_once_and_do_not_touch(words in proptest::collection::vec(any::<u64>(), 0..4)) {
            let mut again = vec![0u64; words.len()];
            let mut end = 0;
            for (first, count) in runs(&words) {
                prop_assert!(count > 0 && (first > end || first == 0));
                end = first + count;
                for bit in first..end {
                    again[(bit / 64) as usize] |= 1 << (bit % 64);
                }
            }
            prop_assert_eq!(again, words);
        }
    }
}
