// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shared map of hinted pages: written by the device, read by the migrator just before it sends.
//!
//! The map is a memory file (memfd, sealed with `F_SEAL_SHRINK`). The migrator makes it and passes it to the device over
//! the control socket:
//!
//! ```text
//! byte 0     magic "LACUNAHM"   8   version, little-endian   16  pages
//!      24    epoch (0: closed)  32  phase (HintPhase)        40  pages hinted in this epoch
//!      48    of these, pages that only the agent reported    56  the agent has reported all free pages below this one
//!      64    who must not be asked: 1 driver, 2 agent
//!      4096  plane of the driver: one bit for each 4 KiB page from guest-physical 0, bit p % 64 of word p / 64
//!      then  plane of the agent, in the same layout
//!      then  marks: bit w % 64 of word w / 64 is set if word w of either plane may hold a hint
//!      then  summary: bit c % 64 of word c / 64 is set if word c of the marks may have bits
//! ```
//!
//! All words are 64-bit atomics. A page is hinted if its bit is set in either plane; which plane it is in matters to
//! statistics only. The migrator clears the planes between two epochs. The device only sets bits, and only while an
//! epoch is open. So every word has one writer at a time (within the device, the one that holds its lock), which may
//! read a word and write it back without a locked instruction.

mod layout;
mod phase;
mod planes;
mod tellers;
#[cfg(test)]
mod tests;

use crate::sync::{AtomicU64, Ordering};
use layout::{
    AGENT_ONLY_WORD, ANSWERED_WORD, EPOCH_WORD, HINTED_WORD, MAGIC_WORD, NO_AGENT, NO_DRIVER,
    NOT_ASKED_WORD, PAGES_WORD, PHASE_WORD, PLANES_WORD, VERSION_WORD, check_size, mark_words,
};
pub use layout::{HEADER_BYTES, HintMapError, MAGIC, VERSION, Words, bytes_for};
pub use phase::HintPhase;
pub use planes::{bits_of, word_masks};
pub use tellers::{HintBits, Tellers};

/// A view of the shared map in `W`.
#[derive(Debug)]
pub struct HintMap<W> {
    words: W,
    pages: u64,
}

impl<W: Words> HintMap<W> {
    /// Lays a new, closed map for `pages` pages out in zeroed memory.
    ///
    /// # Errors
    /// [`HintMapError::TooSmall`] if the memory has fewer than [`bytes_for`]`(pages)` bytes.
    pub fn format(words: W, pages: u64) -> Result<Self, HintMapError> {
        check_size(&words, pages)?;
        let map = Self { words, pages };
        map.at(PAGES_WORD).store(pages, Ordering::Relaxed);
        map.at(VERSION_WORD).store(VERSION, Ordering::Relaxed);
        map.at(MAGIC_WORD).store(MAGIC, Ordering::Release);
        Ok(map)
    }

    /// Opens a map that the other side has laid out. The page count is read only here, so a peer cannot change it
    /// later.
    ///
    /// # Errors
    /// [`HintMapError`] for memory that is not a map, or one that does not fit.
    pub fn open(words: W) -> Result<Self, HintMapError> {
        let read = |index| words.word(index).map(|word| word.load(Ordering::Acquire));
        let (Some(magic), Some(version), Some(pages)) =
            (read(MAGIC_WORD), read(VERSION_WORD), read(PAGES_WORD))
        else {
            return Err(HintMapError::TooSmall { pages: 0 });
        };
        if magic != MAGIC {
            return Err(HintMapError::Magic(magic));
        }
        if version != VERSION {
            return Err(HintMapError::Version(version));
        }
        check_size(&words, pages)?;
        Ok(Self { words, pages })
    }

    /// Pages that the map has bits for.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The open epoch's number, 0 if none is open.
    pub fn epoch(&self) -> u64 {
        self.at(EPOCH_WORD).load(Ordering::Acquire)
    }

    /// How far the guest is. An unknown number reads as closed.
    pub fn phase(&self) -> HintPhase {
        HintPhase::from_raw(self.at(PHASE_WORD).load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Pages newly hinted since the epoch was opened.
    pub fn hinted_pages(&self) -> u64 {
        self.at(HINTED_WORD).load(Ordering::Acquire)
    }

    /// Those of [`HintMap::hinted_pages`] that the agent reported and the driver had not hinted.
    pub fn agent_only_pages(&self) -> u64 {
        self.at(AGENT_ONLY_WORD).load(Ordering::Acquire)
    }

    /// The agent has reported all free pages below this one. Read it before the planes: then their words for these pages
    /// are complete.
    pub fn answered(&self) -> u64 {
        self.at(ANSWERED_WORD).load(Ordering::Acquire)
    }

    /// Device: the agent has reported all free pages below `page`.
    pub fn set_answered(&self, page: u64) {
        self.at(ANSWERED_WORD).store(page, Ordering::Release);
    }

    /// Whose hints the migrator wants; by default everybody's.
    pub fn asked(&self) -> Tellers {
        let not_asked = self.at(NOT_ASKED_WORD).load(Ordering::Acquire);
        Tellers {
            driver: not_asked & NO_DRIVER == 0,
            agent: not_asked & NO_AGENT == 0,
        }
    }

    /// Migrator: asks only `tellers`. Only while no epoch is open.
    pub fn ask(&self, tellers: Tellers) {
        let driver = if tellers.driver { 0 } else { NO_DRIVER };
        let agent = if tellers.agent { 0 } else { NO_AGENT };
        self.at(NOT_ASKED_WORD)
            .store(driver | agent, Ordering::Release);
    }

    /// Device: announces `epoch` in `phase` with no page hinted yet.
    pub fn begin(&self, epoch: u64, phase: HintPhase) {
        self.at(HINTED_WORD).store(0, Ordering::Relaxed);
        self.at(AGENT_ONLY_WORD).store(0, Ordering::Relaxed);
        self.at(ANSWERED_WORD).store(0, Ordering::Relaxed);
        self.set_phase(phase);
        self.at(EPOCH_WORD).store(epoch, Ordering::Release);
    }

    /// Device: the guest has moved on to `phase`.
    pub fn set_phase(&self, phase: HintPhase) {
        self.at(PHASE_WORD).store(phase as u64, Ordering::Release);
    }

    /// Device: the epoch is closed. `phase` says whether another may follow.
    pub fn end(&self, phase: HintPhase) {
        self.at(EPOCH_WORD).store(0, Ordering::Release);
        self.set_phase(phase);
    }

    /// Words of a plane.
    pub fn bitmap_words(&self) -> usize {
        // No overflow: `check_size` has shown that the memory holds all words.
        self.pages.div_ceil(64) as usize
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        self.words
            .word(index)
            .expect("the memory's size was checked when the map was made")
    }

    fn load_at(&self, index: usize) -> u64 {
        self.at(index).load(Ordering::Acquire)
    }

    fn driver_plane(&self) -> usize {
        PLANES_WORD
    }

    fn agent_plane(&self) -> usize {
        PLANES_WORD + self.bitmap_words()
    }

    fn marks(&self) -> usize {
        PLANES_WORD + 2 * self.bitmap_words()
    }

    fn summary(&self) -> usize {
        self.marks() + mark_words(self.pages) as usize
    }
}
