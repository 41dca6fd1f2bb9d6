// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a page is a hole, as far as the balloon device knows.
//!
//! The device's answer may be out of date when it is used. So it only decides which source a hole is counted for, never
//! whether a page is one.

use crate::memory::bitmap::MigrationBitmap;
use crate::report::page_source::Reason;

/// The pages that the guest has put into the balloon, and those that it has reported.
#[derive(Debug)]
pub(crate) struct GivenUp {
    ballooned: MigrationBitmap,
    reported: MigrationBitmap,
}

impl GivenUp {
    /// The two sets, as the device tells them.
    pub(super) fn new(ballooned: MigrationBitmap, reported: MigrationBitmap) -> Self {
        Self {
            ballooned,
            reported,
        }
    }

    /// The pages `holes` of a word by why they are holes: for no reason that the device knows, because they are in the balloon,
    /// or because they were reported.
    pub(crate) fn reasons(&self, index: usize, holes: u64) -> [(Reason, u64); 3] {
        let ballooned = holes & self.ballooned.load_marked(index);
        let reported = holes & self.reported.load_marked(index) & !ballooned;
        [
            (Reason::Hole, holes & !ballooned & !reported),
            (Reason::Balloon, ballooned),
            (Reason::Reported, reported),
        ]
    }
}
