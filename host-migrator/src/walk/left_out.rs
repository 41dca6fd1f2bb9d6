// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages were left out, and why: three bits for each page.

use spec::hint_map::HintBits;

use crate::memory::bitmap::MigrationBitmap;
use crate::report::page_source::{PagesBySource, Reason};

/// For each page the [`Reason`] why its latest content was not sent. The reason is a number of three bits, one in each
/// plane; 0 means that the page was sent or still has to be sent.
#[derive(Debug)]
pub(crate) struct LeftOut {
    planes: [MigrationBitmap; 3],
}

impl LeftOut {
    /// No page is left out. There are `pages` pages.
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            planes: std::array::from_fn(|_| MigrationBitmap::new(pages)),
        }
    }

    /// Notes that the pages `bits` of a word are left out for `reason`. Returns their number. The pages must have no
    /// reason yet: call [`LeftOut::forget`] first.
    pub(crate) fn note(&self, index: usize, bits: u64, reason: Reason) -> u64 {
        for (plane, map) in self.planes.iter().enumerate() {
            if reason as u64 & (1 << plane) != 0 {
                map.merge(index, bits);
            }
        }
        u64::from(bits.count_ones())
    }

    /// As [`LeftOut::note`], for pages that were `told` to be free.
    pub(crate) fn note_hinted(&self, index: usize, told: HintBits, pages: &mut PagesBySource) {
        for (reason, bits) in Reason::by_teller(told) {
            pages.add(reason, self.note(index, bits, reason));
        }
    }

    /// Removes the reasons of the pages `bits` of a word, and adds the pages to `pages` by reason.
    pub(crate) fn forget(&self, index: usize, bits: u64, pages: &mut PagesBySource) {
        let words = (self.planes.each_ref()).map(|plane| plane.load_marked(index));
        if (words[0] | words[1] | words[2]) & bits == 0 {
            return;
        }
        for reason in Reason::ALL {
            let count = (with(words, reason) & bits).count_ones();
            pages.add(reason, count.into());
        }
        for plane in &self.planes {
            plane.clear(index, bits);
        }
    }

    /// The pages that were left out because they were hinted.
    pub(crate) fn hinted(&self) -> MigrationBitmap {
        let [driver, agent, _] = &self.planes;
        let hinted = MigrationBitmap::new(driver.pages());
        for index in driver.occupied().chain(agent.occupied()) {
            let words = self.planes.each_ref().map(|plane| plane.load(index));
            let of = |bits, reason| bits | with(words, reason);
            hinted.merge(index, Reason::HINTED.into_iter().fold(0, of));
        }
        hinted
    }
}

/// The pages whose number in the planes' `words` is that of `reason`.
fn with(words: [u64; 3], reason: Reason) -> u64 {
    (words.into_iter().enumerate())
        .map(|(plane, word)| {
            if reason as u64 & (1 << plane) != 0 {
                word
            } else {
                !word
            }
        })
        .fold(u64::MAX, |bits, word| bits & word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_what_is_forgotten() {
        let left_out = LeftOut::new(200);
        let mut noted = PagesBySource::default();
        for (page, reason) in Reason::ALL.into_iter().enumerate() {
            noted.add(reason, left_out.note(1, 1 << page, reason));
        }
        left_out.note_hinted(
            2,
            HintBits {
                driver: 0b110,
                agent: 0b011,
            },
            &mut noted,
        );
        assert_eq!((noted.driver, noted.agent, noted.both), (2, 2, 2));
        let hinted = left_out.hinted();
        assert_eq!((hinted.load(1), hinted.load(2)), (0b111, 0b111));
        let mut forgotten = PagesBySource::default();
        for index in 0..4 {
            left_out.forget(index, u64::MAX, &mut forgotten);
        }
        assert_eq!(forgotten, noted);
        left_out.forget(1, u64::MAX, &mut forgotten);
        assert_eq!(forgotten, noted, "nothing is forgotten twice");
        assert_eq!(left_out.hinted().count(), 0);
    }
}
