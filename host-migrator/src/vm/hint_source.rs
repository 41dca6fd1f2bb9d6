// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source of free page hints: epochs that are opened and closed, and a map of hinted pages.

use spec::PageRange;
use spec::control::{EpochReport, PageSet, Reply, Request};
use spec::hint_map::{HintBits, HintPhase, Tellers};

use crate::memory::bitmap::MigrationBitmap;

/// Hints cannot be used. The migration goes on without them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HintError {
    /// The device refused the request.
    #[error("the balloon device refused: {0}")]
    Refused(#[from] spec::control::Refusal),
    /// The device's answer is invalid.
    #[error("the balloon device broke the control protocol: {0}")]
    Protocol(String),
    /// The device cannot be reached, does not answer in time, or has gone.
    #[error("the balloon device does not answer: {0}")]
    Io(#[from] std::io::Error),
}

impl HintError {
    /// The error for a `reply` that does not belong to `request`.
    pub fn unexpected(request: Request, reply: Reply) -> Self {
        Self::Protocol(format!("{reply:?} is not an answer to {request:?}"))
    }
}

/// A source of free page hints.
///
/// The engine opens an epoch when every page is armed, reads the map while it sends, and closes the epoch before any
/// harvest. Between [`HintSource::close`] and the next [`HintSource::open`] only [`HintSource::take_all`] changes the
/// map.
pub trait HintSource: Send {
    /// Prepares for the migration of a guest whose bitmap has `pages` bits. Only `tellers` will be asked.
    ///
    /// # Errors
    /// [`HintError`] if the source cannot be used; the migration then runs without it.
    fn prepare(&mut self, pages: u64, tellers: Tellers) -> Result<(), HintError>;

    /// Opens epoch `epoch`: the guest is asked for its free pages. Does not wait for the guest.
    ///
    /// # Errors
    /// [`HintError`] if the epoch could not be opened; no hint arrives then.
    fn open(&mut self, epoch: u64) -> Result<(), HintError>;

    /// The hints so far for pages `64 * index ..`.
    fn load(&self, index: usize) -> HintBits;

    /// Calls `found` with the index of each word that may have hints, for [`HintSource::load`]. A source that cannot tell calls it
    /// with none; then pages that were hinted after they had been sent stay in a snapshot file until they are sent again.
    fn hinted_words(&self, found: &mut dyn FnMut(usize)) {
        let _ = found;
    }

    /// How far the guest is.
    fn phase(&self) -> HintPhase;

    /// Pages hinted since the epoch was opened.
    fn hinted_pages(&self) -> u64;

    /// In the open epoch every free page below this one was reported, so a page there that is not hinted is in use. Call this
    /// before [`HintSource::load`].
    fn answered(&self) -> u64 {
        0
    }

    /// How many pages were free a short while ago, according to the guest; `None` if the guest has not said so.
    fn free_pages(&mut self) -> Option<u64> {
        None
    }

    /// Closes the epoch. After the return no hint of it arrives.
    ///
    /// # Errors
    /// [`HintError`] if the source did not confirm: its map must not be read again.
    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError>;

    /// Takes all hints out of the map, between two epochs. Calls `told` with the index of each word that has any: word
    /// `index` is about pages `64 * index ..`.
    fn take_all(&mut self, told: &mut dyn FnMut(usize, HintBits));

    /// The pages of `set` in `memory`, which is in ascending order. They say why holes of the memory files are holes.
    /// The answer is for statistics, and for using these sources one by one. It is never in itself a reason to leave
    /// out a page.
    ///
    /// # Errors
    /// [`HintError`] if the set is not available. Its pages then count as never touched.
    fn given_up(
        &mut self,
        set: PageSet,
        memory: &[PageRange],
    ) -> Result<MigrationBitmap, HintError> {
        let _ = set;
        Ok(MigrationBitmap::new(
            memory.last().map_or(0, |region| region.end()),
        ))
    }

    /// The migration is over: tells the guest DONE.
    ///
    /// # Errors
    /// [`HintError`] if the source cannot be told; a source that has gone tells the guest itself.
    fn done(&mut self) -> Result<(), HintError>;
}
