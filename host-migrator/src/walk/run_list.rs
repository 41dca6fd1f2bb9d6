// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs of pages without content: zero pages, discards.

use spec::PageRange;
use spec::stream::{MAX_SECTION_RUNS, RUN_BYTES};

use crate::memory::guest_memory::GuestMemory;

/// About the most pages of a list. While the destination makes them zero, it reads nothing.
const MOST_PAGES: u64 = 1 << 18;

/// Runs in order of arrival.
#[derive(Default)]
pub(super) struct RunList {
    pages: u64,
    runs: Vec<PageRange>,
}

impl RunList {
    /// Adds `run`. Joins it to the last run if the two touch inside a region.
    pub(super) fn push(&mut self, run: PageRange, ram: &dyn GuestMemory) {
        for piece in ram.layout().pieces(run) {
            self.pages += piece.count();
            let last = self.runs.last_mut().filter(|last| {
                last.end() == piece.first() && !ram.layout().begins_region(piece.first())
            });
            let joined = last.and_then(|last| {
                let joined = PageRange::new(last.first(), last.count() + piece.count())?;
                *last = joined;
                Some(joined)
            });
            if joined.is_none() {
                self.runs.push(piece);
            }
        }
    }

    /// Whether there is no room for the runs of another word, if about `most_bytes` of the list may be sent at once.
    pub(super) fn is_full(&self, most_bytes: u64) -> bool {
        // A run that may still grow does not count yet.
        let closed = self.runs.len().saturating_sub(1);
        closed + 65 > MAX_SECTION_RUNS
            || (closed * RUN_BYTES) as u64 >= most_bytes
            || self.pages >= MOST_PAGES
    }

    /// The runs.
    pub(super) fn runs(&self) -> &[PageRange] {
        &self.runs
    }

    /// Removes all runs.
    pub(super) fn clear(&mut self) {
        self.pages = 0;
        self.runs.clear();
    }
}
