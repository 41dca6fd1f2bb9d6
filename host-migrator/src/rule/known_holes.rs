// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holes of the memory files in rounds after the first: memory that a balloon has given back meanwhile.
//!
//! They are taken for zero without being read, because reading a hole gives it memory again. They are asked for after a
//! harvest, and forgotten before the next: a page that is written meanwhile is not to be taken for a hole.

use spec::PageRange;

use super::given_up::GivenUp;
use crate::memory::bitmap::MigrationBitmap;
use crate::report::page_source::Reason;

/// The holes after the last harvest, and why they are.
#[derive(Debug)]
pub(super) struct KnownHoles {
    pages: MigrationBitmap,
    given_up: GivenUp,
}

impl KnownHoles {
    /// No holes yet, for a guest whose bitmap has `pages` bits.
    pub(super) fn new(pages: u64, given_up: GivenUp) -> Self {
        Self {
            pages: MigrationBitmap::new(pages),
            given_up,
        }
    }

    /// Adds a hole.
    pub(super) fn insert(&self, hole: PageRange) {
        self.pages.insert(hole);
    }

    /// The holes among the pages `bits` of a word.
    pub(super) fn of(&self, index: usize, bits: u64) -> u64 {
        bits & self.pages.load_marked(index)
    }

    /// The pages `holes` of a word by the source that they count for. A hole without another source counts as a zero page,
    /// although its bytes were not read.
    pub(super) fn reasons(&self, index: usize, holes: u64) -> [(Reason, u64); 3] {
        let reasons = self.given_up.reasons(index, holes);
        reasons.map(|(reason, pages)| match reason {
            Reason::Hole => (Reason::Zero, pages),
            _ => (reason, pages),
        })
    }
}
