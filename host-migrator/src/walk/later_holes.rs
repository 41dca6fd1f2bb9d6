// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Holes of the memory files in rounds after the first: memory that a balloon has given back meanwhile.
//!
//! They are taken for zero without being read, because reading a hole gives it memory again.

use spec::trace::Event;

use crate::memory::bitmap::MigrationBitmap;
use crate::memory::holes::HoleBudget;
use crate::memory::ram::GuestRam;
use crate::memory::ram::RamError;
use crate::report::page_source::{PageSources, Reason};
use crate::report::trace::Trace;
use crate::rule::given_up::GivenUp;
use crate::rule::tracker::Tracker;

/// The most holes that a round looks for. Without a limit a guest could make the search last as long as it likes.
const MOST_HOLES: u64 = 1 << 16;
/// The most bytes of holes that are read in a round, on a kernel whose holes have to be read.
const MOST_BYTES: u64 = 256 << 20;

/// The holes when the round began, and why they are.
///
/// A page that is written after they were asked for is in the next harvest: it is sent again, or an early harvest
/// finds it, and it is not to be taken for a hole.
#[derive(Debug)]
pub(crate) struct LaterHoles {
    pages: MigrationBitmap,
    given_up: GivenUp,
}

impl LaterHoles {
    /// Asks for them, after a harvest and before the next epoch opens. What is not found within bounds is looked at as
    /// other pages are. `go_on` is asked meanwhile whether to go on.
    pub(crate) fn ask(
        tracker: &mut Tracker<'_>,
        ram: &GuestRam,
        sources: PageSources,
        trace: &Trace,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Self, RamError> {
        let given_up = GivenUp::ask(tracker, ram, sources);
        trace.record(Event::HolesAsked);
        let pages = MigrationBitmap::new(ram.bitmap_pages());
        let mut budget = HoleBudget {
            holes: MOST_HOLES,
            bytes: MOST_BYTES,
            go_on,
        };
        ram.find_holes(&mut budget, &mut |hole| pages.insert(hole))?;
        Ok(Self { pages, given_up })
    }

    /// The holes among the pages `bits` of a word.
    pub(crate) fn of(&self, index: usize, bits: u64) -> u64 {
        bits & self.pages.load(index)
    }

    /// The pages `holes` of a word by the source to be counted for them. One that nobody gave up was found to be
    /// zero, if without a look at its bytes.
    pub(crate) fn reasons(&self, index: usize, holes: u64) -> [(Reason, u64); 3] {
        let reasons = self.given_up.reasons(index, holes);
        reasons.map(|(reason, pages)| match reason {
            Reason::Hole => (Reason::Zero, pages),
            _ => (reason, pages),
        })
    }
}
