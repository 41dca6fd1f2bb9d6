// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that says of every other page that it is free.

use host_migrator::{HintError, HintSource};
use spec::control::EpochReport;
use spec::hint_map::{HintBits, HintPhase, Tellers};

/// The odd pages of a word.
const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;

/// Hints for the odd pages, all of them as soon as they are asked for.
#[derive(Debug, Default)]
pub(super) struct OddPages {
    pages: u64,
    is_open: bool,
}

impl OddPages {
    fn words(&self) -> usize {
        self.pages.div_ceil(64) as usize
    }
}

impl HintSource for OddPages {
    fn prepare(&mut self, pages: u64, _tellers: Tellers) -> Result<(), HintError> {
        self.pages = pages;
        Ok(())
    }

    fn open(&mut self, _epoch: u64) -> Result<(), HintError> {
        self.is_open = true;
        Ok(())
    }

    fn load(&self, index: usize) -> HintBits {
        let is_told = self.is_open && index < self.words();
        HintBits {
            driver: if is_told { ODD } else { 0 },
            agent: 0,
        }
    }

    fn hinted_words(&self, found: &mut dyn FnMut(usize)) {
        (0..self.words()).for_each(found);
    }

    fn phase(&self) -> HintPhase {
        match self.is_open {
            true => HintPhase::Finished,
            false => HintPhase::Closed,
        }
    }

    fn hinted_pages(&self) -> u64 {
        self.pages / 2
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        self.is_open = false;
        Ok(EpochReport {
            epoch,
            phase: HintPhase::Finished,
            pages: self.pages / 2,
            ..EpochReport::default()
        })
    }

    fn take_all(&mut self, _told: &mut dyn FnMut(usize, HintBits)) {}

    fn done(&mut self) -> Result<(), HintError> {
        Ok(())
    }
}
