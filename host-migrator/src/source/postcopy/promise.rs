// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages that are sent after the hand-over. Nobody writes to them any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use spec::PageRange;
use spec::file::Side;
use spec::hint_map::word_masks;

use crate::memory::bitmap::{Cursor, MigrationBitmap, runs_of_word};
use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::ownership::Ownership;
use crate::snapshot::{Saved, SavedHalf, SnapshotError, Storage};
use crate::vm::state::MachineState;
use crate::walk::batch::Batch;

/// No page.
const NOWHERE: u64 = u64::MAX;

/// The promised pages.
pub(super) struct Promise {
    ram: Arc<dyn GuestMemory>,
    promised: MigrationBitmap,
    /// Of these, those of which the destination has not said that it has them.
    unconfirmed: MigrationBitmap,
    /// Of these, those that were not sent on the lanes of now.
    unsent: MigrationBitmap,
    /// The page behind the last one that was asked for: the guest is likely to go on there.
    near: AtomicU64,
}

/// The destination asks for a page that was never promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the destination asks for page {0:#x}, which was not promised")]
pub(super) struct NotPromised(u64);

impl Promise {
    /// The pages of `promised` in `ram`.
    pub(super) fn new(ram: Arc<dyn GuestMemory>, promised: MigrationBitmap) -> Self {
        let copy = || {
            let copy = MigrationBitmap::new(promised.pages());
            for index in promised.occupied() {
                copy.merge(index, promised.load(index));
            }
            copy
        };
        Self {
            unconfirmed: copy(),
            unsent: copy(),
            ram,
            promised,
            near: AtomicU64::new(NOWHERE),
        }
    }

    /// How many there are.
    pub(super) fn total(&self) -> u64 {
        self.promised.count()
    }

    /// How many of them were not sent.
    pub(super) fn left(&self) -> u64 {
        self.unsent.count()
    }

    /// All of them.
    pub(super) fn runs(&self) -> Vec<PageRange> {
        self.promised.runs()
    }

    /// Only `missing` is to be sent: the destination has all else.
    pub(super) fn send_again(&self, missing: &[PageRange]) -> Result<(), NotPromised> {
        missing.iter().try_for_each(|run| self.check(*run))?;
        for bitmap in [&self.unsent, &self.unconfirmed] {
            bitmap.clear_all();
            missing.iter().for_each(|run| bitmap.insert(*run));
        }
        Ok(())
    }

    /// Saves the pages that the destination may lack as this side's half of `hand_over`.
    pub(super) fn save(
        &self,
        storage: Box<dyn Storage>,
        hand_over: Ownership,
    ) -> Result<Saved, SnapshotError> {
        // What the guest needs of its machine is in the destination's half.
        SavedHalf {
            half: hand_over.half(Side::Source),
            layout: self.ram.layout(),
            description: &[],
            state: &MachineState::default(),
            known: &self.unconfirmed,
        }
        .save(storage, |range, out| self.ram.read(range, out))
    }

    /// Claims those pages of `range` that were not sent. The others are under way.
    pub(super) fn claim_asked(&self, range: PageRange) -> Result<Vec<PageRange>, NotPromised> {
        self.check(range)?;
        self.near.store(range.end(), Ordering::Relaxed);
        let claimed = word_masks(range).flat_map(|(index, mask)| {
            runs_of_word(index as u64 * 64, self.unsent.clear(index, mask))
        });
        Ok(claimed.collect())
    }

    fn check(&self, range: PageRange) -> Result<(), NotPromised> {
        let promised = |page| self.promised.contains(page);
        // A range that ends nowhere is refused at its first page that there is not.
        match (range.first()..range.end()).find(|page| !promised(*page)) {
            Some(page) => Err(NotPromised(page)),
            None => Ok(()),
        }
    }

    /// Claims the next pages that nobody has asked for, at most `most`: where the guest is, and else where the walk is.
    pub(super) fn claim_next(&self, cursor: &mut Cursor, most: u64) -> Option<PageRange> {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        let near = self.near.swap(NOWHERE, Ordering::Relaxed);
        if near < self.unsent.pages()
            && let Some(range) = self.claim((near / 64) as usize, (near % 64) as u32, most)
        {
            // Where nobody asks for another page, the walk goes on from here.
            let next = self.near.compare_exchange(
                NOWHERE,
                range.end(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            // Somebody has asked meanwhile.
            let _ = next;
            return Some(range);
        }
        while let Some(index) = self.unsent.next(cursor, |_| 0) {
            if let Some(range) = self.claim(index, 0, most) {
                if self.unsent.load(index) != 0 {
                    *cursor = Cursor::from_word(index);
                }
                return Some(range);
            }
        }
        None
    }

    fn claim(&self, index: usize, from: u32, most: u32) -> Option<PageRange> {
        let (range, rest) = self.unsent.claim_run(index, from, most.min(64))?;
        self.unsent.merge(index, rest);
        Some(range)
    }

    /// Copies the pages of `range`, at most 64 of a word, into `batch`, where they fit. Returns the runs of those that are zero, which
    /// are not copied.
    pub(super) fn copy(
        &self,
        range: PageRange,
        batch: &mut Batch,
    ) -> Result<impl Iterator<Item = PageRange> + use<>, RamError> {
        let zero = batch.fill(&*self.ram, range, true)?;
        Ok(runs_of_word(range.first(), zero))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::ram::GuestRam;
    use crate::memory::ram_region::RamRegion;
    use spec::PAGE_SIZE;

    fn pages(first: u64, count: u64) -> PageRange {
        PageRange::new(first, count).unwrap()
    }

    fn promise(of: &[PageRange]) -> Promise {
        let ram = GuestRam::map(vec![RamRegion::new(0, 300 * PAGE_SIZE).unwrap()]).unwrap();
        let promised = MigrationBitmap::new(300);
        of.iter().for_each(|run| promised.insert(*run));
        Promise::new(Arc::new(ram), promised)
    }

    #[test]
    fn each_page_is_claimed_once_and_what_was_asked_for_goes_first() {
        let promise = promise(&[pages(0, 10), pages(100, 4), pages(290, 2)]);
        assert_eq!(promise.claim_asked(pages(101, 1)), Ok(vec![pages(101, 1)]));
        assert_eq!(promise.claim_asked(pages(101, 1)), Ok(vec![]));
        let mut cursor = Cursor::from_word(0);
        let mut next = || promise.claim_next(&mut cursor, 4);
        // The neighbours of what was asked for, and then the rest.
        assert_eq!(next(), Some(pages(102, 2)));
        assert_eq!(next(), Some(pages(0, 4)));
        assert_eq!(next(), Some(pages(4, 4)));
        assert_eq!(next(), Some(pages(8, 2)));
        assert_eq!(next(), Some(pages(100, 1)));
        assert_eq!(next(), Some(pages(290, 2)));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_page_that_was_not_promised_is_refused_by_name() {
        let promise = promise(&[pages(0, 10)]);
        assert_eq!(promise.claim_asked(pages(9, 2)), Err(NotPromised(10)));
        assert_eq!(
            promise.claim_asked(pages(0, u64::MAX)),
            Err(NotPromised(10))
        );
        assert_eq!(promise.send_again(&[pages(400, 1)]), Err(NotPromised(400)));
        assert_eq!(promise.left(), 10, "nothing is lost");
        promise.send_again(&[pages(3, 2)]).unwrap();
        assert_eq!((promise.left(), promise.total()), (2, 10));
    }
}
