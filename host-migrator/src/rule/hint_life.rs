// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of the hints in a migration: asked for, used while the epoch is open, closed, forgotten, or lost with the
//! source that gave them.

use std::time::Duration;

use spec::hint_map::{HintBits, HintPhase, Tellers};
use spec::trace::Event;

use super::delivered::Delivered;
use crate::memory::bitmap::MigrationBitmap;
use crate::report::page_source::{PagesBySource, Reason};
use crate::report::trace::Trace;
use crate::vm::hint_source::{HintError, HintSource};

/// With a clause switched off, the engine waits this long for hints, so that a test sees them go wrong.
const BROKEN_CLAUSE_WAIT: Duration = Duration::from_millis(200);

/// Words of hints that are taken at once.
const AT_ONCE: usize = 64;

/// The hint source, dropped for the rest of the migration when it fails.
pub(super) struct HintLife<'a> {
    pub(super) source: Option<&'a mut dyn HintSource>,
    /// Whose hints are wanted.
    pub(super) tellers: Tellers,
    pub(super) epoch: u64,
    pub(super) is_open: bool,
    /// The guest did not answer in the last epoch.
    pub(super) silent: bool,
    /// What was hinted in the last epoch.
    pub(super) free_before: Option<MigrationBitmap>,
    pub(super) lost: Option<String>,
    trace: &'a Trace,
}

impl<'a> HintLife<'a> {
    pub(super) fn prepare(
        source: Option<&'a mut dyn HintSource>,
        tellers: Tellers,
        pages: u64,
        trace: &'a Trace,
    ) -> Self {
        let mut hints = Self {
            source,
            tellers,
            epoch: 0,
            is_open: false,
            silent: false,
            free_before: None,
            lost: None,
            trace,
        };
        if tellers.any() {
            let result = hints
                .source
                .as_deref_mut()
                .map(|source| source.prepare(pages, tellers));
            hints.check(result);
        }
        hints
    }

    /// Whether hints are used.
    pub(super) fn are_used(&self) -> bool {
        self.source.is_some() && self.tellers.any()
    }

    /// The source, if its hints are used.
    pub(super) fn used(&self) -> Option<&dyn HintSource> {
        self.source.as_deref().filter(|_| self.tellers.any())
    }

    pub(super) fn open(&mut self) {
        if self.is_open || !self.tellers.any() {
            return;
        }
        let epoch = self.epoch + 1;
        let trace = self.trace;
        let result = self.source.as_deref_mut().map(|source| {
            trace.record(Event::Open(epoch));
            source.open(epoch)
        });
        if self.check(result).is_some() {
            self.epoch = epoch;
            self.is_open = true;
        }
    }

    pub(super) fn close(&mut self) {
        if !self.is_open {
            return;
        }
        self.is_open = false;
        let epoch = self.epoch;
        let result = self.source.as_deref_mut().map(|source| source.close(epoch));
        if let Some(report) = self.check(result) {
            self.trace.record(Event::Closed(epoch));
            self.silent = report.phase == HintPhase::Requested;
            log::debug!("{report:?}");
        }
    }

    /// Takes all hints out of the map. Calls `late` with those that came after their page had been `delivered`, for the
    /// first time since. Returns how many these are.
    pub(super) fn forget(
        &mut self,
        delivered: &Delivered,
        pages: u64,
        late: &mut dyn FnMut(usize, HintBits),
    ) -> PagesBySource {
        let mut too_late = PagesBySource::default();
        if !self.are_used() {
            return too_late;
        }
        let Some(source) = self.source.as_deref_mut() else {
            return too_late;
        };
        let free = (self.free_before).get_or_insert_with(|| MigrationBitmap::new(pages));
        free.clear_all();
        let (tellers, words) = (self.tellers, free.word_count());
        let mut note = |taken: &[(usize, HintBits)]| {
            // All are read before the first is changed, so that their cache misses overlap.
            let read = taken
                .iter()
                .map(|(index, _)| delivered.load(*index) | free.load(*index));
            std::hint::black_box(read.fold(0, |all, word| all | word));
            for (index, told) in taken {
                free.merge_alone(*index, told.pages());
                let told = delivered.too_late(*index, *told);
                if told.pages() == 0 {
                    continue;
                }
                for (teller, bits) in Reason::by_teller(told) {
                    too_late.add(teller, bits.count_ones().into());
                }
                late(*index, told);
            }
        };
        let mut taken = Vec::with_capacity(AT_ONCE);
        source.take_all(&mut |index, told| {
            // A device may report more pages than the guest has.
            if index < words {
                taken.push((index, told.of(tellers, u64::MAX)));
            }
            if taken.len() == AT_ONCE {
                note(&taken);
                taken.clear();
            }
        });
        note(&taken);
        self.trace.record(Event::Forgotten);
        too_late
    }

    /// With a clause switched off: gives the guest time to hint, and to reuse hinted pages.
    pub(super) fn wait_for_guest(&self) {
        if self.are_used() {
            std::thread::sleep(BROKEN_CLAUSE_WAIT);
        }
    }

    /// A source that failed is not used again in this migration, because its map cannot be trusted.
    fn check<T>(&mut self, result: Option<Result<T, HintError>>) -> Option<T> {
        match result? {
            Ok(value) => Some(value),
            Err(error) => {
                log::warn!("the migration goes on without free page hints: {error}");
                self.lost = Some(error.to_string());
                self.source = None;
                self.is_open = false;
                self.trace.record(Event::HintsLost);
                None
            }
        }
    }
}
