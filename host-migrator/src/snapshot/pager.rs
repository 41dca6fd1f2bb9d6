// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot as a pager: single pages, when they are needed.

use rustix::fs::Advice;
use spec::PageRange;
use spec::file::{Bitmap, CHECKSUM_BYTES};

use super::error::SnapshotError;
use super::load::{MOST_PAGES, Run};
use super::reader::Snapshot;
use crate::memory::bitmap::MigrationBitmap;
use crate::paging::{Pager, PagerError};

impl Snapshot {
    /// The pages that are in the file. All others are zero.
    ///
    /// # Errors
    /// [`SnapshotError`] if the page bitmap is damaged or cannot be read.
    pub fn content(&self) -> Result<MigrationBitmap, SnapshotError> {
        self.pages_of(Bitmap::Pages, self.commit().pages)
    }

    /// The pages that are in `bitmap`, which must be as many as `expected`.
    pub(super) fn pages_of(
        &self,
        bitmap: Bitmap,
        expected: u64,
    ) -> Result<MigrationBitmap, SnapshotError> {
        let pages = MigrationBitmap::new(self.layout().bitmap_pages());
        let mut count = 0;
        self.pages_in(bitmap, &mut |run| {
            count += run.count();
            pages.insert(run);
        })?;
        self.compare_count(count, expected)?;
        Ok(pages)
    }
}

impl Pager for Snapshot {
    fn read(&self, range: PageRange, content: &mut [u8]) -> Result<(), PagerError> {
        let slot = self.slots.of(range).map_err(PagerError::new)?;
        let mut checksums = [0; (MOST_PAGES * CHECKSUM_BYTES) as usize];
        let Some(checksums) = checksums.get_mut(..(range.count() * CHECKSUM_BYTES) as usize) else {
            return Err(PagerError::new("too many pages are read at once"));
        };
        let read = self.input.read(content, self.places.page(slot), "pages");
        read.map_err(PagerError::new)?;
        let at = self.places.checksum(slot);
        let read = self.input.read(checksums, at, "checksums");
        read.map_err(PagerError::new)?;
        let run = Run {
            slot,
            content,
            checksums,
        };
        match run.damaged().next() {
            None => Ok(()),
            Some(slot) => Err(PagerError::new(self.damaged(slot))),
        }
    }

    fn will_read(&self, range: PageRange) {
        for piece in self.layout().pieces(range) {
            let Ok(slot) = self.slots.of(piece) else {
                continue;
            };
            let (page, checksum) = (self.places.page(slot), self.places.checksum(slot));
            self.input.advise(page, piece.bytes(), Advice::WillNeed);
            self.input
                .advise(checksum, piece.count() * CHECKSUM_BYTES, Advice::WillNeed);
        }
    }
}
