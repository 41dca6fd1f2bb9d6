// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Harvests in the middle of a round: a page that is written before it is copied goes to the destination as it
//! is then, and need not go again.
//!
//! A log that is harvested only at the end of a round cannot show this. It has every page that was written since the
//! previous round, also those that were copied after the write. If writes come evenly, that is half of them.
//!
//! What an early harvest brings is kept beside the migration bitmap, as *early pages*, until the round ends:
//!
//! - a copy answers an early page, since it is made after the page was armed again: what is written later is in
//!   the log again;
//! - a skip does not: nobody knows whether the hint or the write was first;
//! - the harvest that ends the round merges what is left into the migration bitmap.
//!
//! So hints mean what they mean without it, whichever order they come in (`spec/free-page-hinting.md`).

use spec::trace::Event;

use super::tracker::harvest_log;
use crate::memory::bitmap::MigrationBitmap;
use crate::report::trace::Trace;
use crate::vm::dirty_log::{DirtyLog, DirtyLogError, LogSource};

/// Sending fewer pages than this is faster than arming them again.
const FEWEST_PAGES: u64 = 1024;
/// An early harvest reads the log of all memory. Between two of them at least one page is sent for every so many pages of
/// memory, so that reading the log takes less than a thirtieth of the time for copying.
const MEMORY_FOR_EACH: u64 = 1024;
/// The most harvests in a round for each that was asked for, if fewer pages are free than expected. Each costs the guest
/// a fault for every page that it goes on writing.
const MOST_FOR_EACH: u64 = 8;

/// The vCPUs' logs, while a round is being sent.
pub(crate) struct EarlyHarvest<'t> {
    logs: &'t mut [Box<dyn DirtyLog>],
    pages: &'t MigrationBitmap,
    trace: &'t Trace,
    /// How many harvests a round shall have; 0: none.
    wanted: u64,
    /// Pages that were to be sent when the round began.
    pending: u64,
    /// Pages that had been sent at the last one.
    sent: u64,
}

impl<'t> EarlyHarvest<'t> {
    /// For a round of `pending` pages, which shall have about `wanted` of them. They add to `pages`.
    pub(crate) fn new(
        logs: &'t mut [Box<dyn DirtyLog>],
        pages: &'t MigrationBitmap,
        trace: &'t Trace,
        wanted: u32,
        pending: u64,
    ) -> Self {
        Self {
            logs,
            pages,
            trace,
            wanted: wanted.into(),
            pending,
            sent: 0,
        }
    }

    /// Harvests, if it is time to: `sent` pages have been sent in this round, and about `free` of those that
    /// were pending will never be.
    ///
    /// # Errors
    /// That of a log: bits may be lost.
    pub(crate) fn when_due(
        &mut self,
        sent: u64,
        free: impl FnOnce() -> u64,
    ) -> Result<(), DirtyLogError> {
        let since = sent - self.sent;
        let fewest = FEWEST_PAGES.max(self.pages.pages() / MEMORY_FOR_EACH);
        if self.wanted == 0 || since < fewest {
            return Ok(());
        }
        let expected = self.pending.saturating_sub(free());
        let apart = expected.max(self.pending / MOST_FOR_EACH) / self.wanted;
        if since < apart {
            return Ok(());
        }
        self.sent = sent;
        self.trace.record(Event::EarlyBegin);
        for (index, log) in self.logs.iter_mut().enumerate() {
            // The other writers are few, and what they say has a use of its own at the end of the round.
            if log.source() == LogSource::Kvm {
                harvest_log(index, log.as_mut(), self.pages, self.trace)?;
            }
        }
        self.trace.record(Event::EarlyEnd);
        Ok(())
    }
}
