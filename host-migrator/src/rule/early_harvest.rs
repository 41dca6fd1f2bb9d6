// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Harvests in the middle of a round: a page that is written before it is copied goes to the destination as it
//! is then, and need not go again.
//!
//! A log that is harvested only at the end of a round cannot show this. It has every page that was written since the
//! previous round, also those that were copied after the write. If writes come evenly, that is half of them.
//!
//! What an early harvest brings is kept beside the migration bitmap, as *early pages*, until the round ends:
//!
//! - a copy takes a page out of the early pages, because it is made after the page was armed again: later writes are in the
//!   log again;
//! - a skip does not, because it is not known whether the hint or the write was first;
//! - the harvest that ends the round merges the remaining early pages into the migration bitmap.
//!
//! So hints have the same meaning with and without early harvests, in whichever order they come
//! (`spec/free-page-hinting.md`).

/// Sending fewer pages than this is faster than arming them again.
const FEWEST_PAGES: u64 = 1024;
/// An early harvest reads the log of all memory. Between two of them at least one page is sent for every so many pages of
/// memory, so that reading the log takes less than a thirtieth of the time for copying.
const MEMORY_FOR_EACH: u64 = 1024;
/// The most harvests in a round for each that was asked for, if fewer pages are free than expected. Each costs the guest
/// a fault for every page that it goes on writing.
const MOST_FOR_EACH: u64 = 8;

/// When a round harvests early.
#[derive(Clone, Copy, Debug)]
pub struct EarlyPlan {
    /// How many harvests a round shall have; 0: none.
    wanted: u64,
    /// Pages that were to be sent when the round began.
    pending: u64,
    /// Pages of the bitmap.
    pages: u64,
    /// Pages that had been sent at the last one.
    sent: u64,
}

impl EarlyPlan {
    /// For a round with `pending` pages to be sent, of a guest whose bitmap has `pages` bits. It shall have about `wanted`
    /// early harvests.
    pub fn new(wanted: u32, pending: u64, pages: u64) -> Self {
        Self {
            wanted: wanted.into(),
            pending,
            pages,
            sent: 0,
        }
    }

    /// Whether it is time for one ([`Epoch::harvest_early`](super::Epoch::harvest_early)): `sent` pages have been sent in
    /// this round, and about `free` of those that were pending will never be.
    pub fn is_due(&mut self, sent: u64, free: impl FnOnce() -> u64) -> bool {
        let since = sent - self.sent;
        let fewest = FEWEST_PAGES.max(self.pages / MEMORY_FOR_EACH);
        if self.wanted == 0 || since < fewest {
            return false;
        }
        let expected = self.pending.saturating_sub(free());
        let apart = expected.max(self.pending / MOST_FOR_EACH) / self.wanted;
        let due = since >= apart;
        if due {
            self.sent = sent;
        }
        due
    }
}
