// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The order that the rule wants, in one place.
//!
//! [`Tracker`] owns the migration bitmap, and only arming makes one. An open [`Epoch`] borrows the tracker, so
//! nothing can be harvested before the epoch is closed. A harvest is one call, so no epoch can open before the harvest is
//! complete. The compiler checks both.

use std::time::Duration;

use spec::PageRange;
use spec::control::PageSet;
use spec::hint_map::{HintPhase, Tellers, Told};
use spec::trace::event::{Brought, Log};
use spec::trace::{Event, PageBits};

use crate::memory::bitmap::MigrationBitmap;
use crate::memory::ram::GuestRam;
use crate::report::page_source::{PagesBySource, Reason};
use crate::report::round_map::Recorder;
use crate::report::trace::Trace;
use crate::rule::clause::{Clause, Clauses};
use crate::vm::dirty_log::{DirtyLog, DirtyLogError, LogSource};
use crate::vm::hint_source::{HintError, HintSource};

use super::early_harvest::EarlyHarvest;

/// A broken clause waits this long for hints that a test then sees go wrong.
const BROKEN_CLAUSE_WAIT: Duration = Duration::from_millis(200);

/// The dirty logs, the hints and what they add up to: the pages still to be sent.
pub(crate) struct Tracker<'a> {
    bitmap: MigrationBitmap,
    /// Written in this round, found by an early harvest, and not copied since.
    early: MigrationBitmap,
    logs: &'a mut [Box<dyn DirtyLog>],
    hints: Hints<'a>,
    clauses: Clauses,
    trace: &'a Trace,
}

/// Where hints are noted that came after their page had been sent.
pub(crate) struct TooLate<'s> {
    /// Pages that may be other than zero at the destination.
    pub(crate) sent: &'s MigrationBitmap,
    /// Of these, pages that are noted already.
    pub(crate) late: &'s MigrationBitmap,
    pub(crate) maps: &'s mut Recorder,
}

/// What a harvest brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Harvest {
    /// Pages that are to be sent for it, and were not before it.
    pub(crate) dirty: u64,
    /// Dirty bits that back ends have set: for what they wrote, and for what they discarded.
    pub(crate) by_back_ends: u64,
    /// Hints that came after their page had been sent.
    pub(crate) too_late: PagesBySource,
}

impl<'a> Tracker<'a> {
    /// Starts all logs, so that every page is armed, and marks every page of memory as to be sent. Of `hints`
    /// those of `tellers` are used.
    pub(crate) fn arm(
        ram: &GuestRam,
        logs: &'a mut [Box<dyn DirtyLog>],
        hints: Option<&'a mut dyn HintSource>,
        tellers: Tellers,
        clauses: Clauses,
        trace: &'a Trace,
    ) -> Result<Self, DirtyLogError> {
        trace.record(Event::Begin(logs.len() as u64));
        let bitmap = MigrationBitmap::new(ram.bitmap_pages());
        for region in ram.regions() {
            bitmap.insert(*region);
            trace.record(Event::Memory(*region));
        }
        let mut tracker = Self {
            hints: Hints::prepare(hints, tellers, bitmap.pages(), trace),
            early: MigrationBitmap::new(bitmap.pages()),
            bitmap,
            logs,
            clauses,
            trace,
        };
        if !tracker.clauses.hold(Clause::ArmFirst) {
            tracker.hints.open();
            tracker.hints.wait_for_guest();
        }
        for (index, log) in tracker.logs.iter_mut().enumerate() {
            log.start()?;
            trace.record(Event::LogStarted(name(index, log.as_ref())));
        }
        Ok(tracker)
    }

    /// The pages to be sent.
    pub(crate) fn bitmap(&self) -> &MigrationBitmap {
        &self.bitmap
    }

    /// Epochs opened.
    pub(crate) fn epochs(&self) -> u64 {
        self.hints.epoch
    }

    /// Whether hints are used.
    pub(crate) fn uses_hints(&self) -> bool {
        self.hints.are_used()
    }

    /// Why hints are not used any more.
    pub(crate) fn hints_lost(&self) -> Option<&str> {
        self.hints.lost.as_deref()
    }

    /// The pages of `set` among those of `memory`, as far as somebody knows.
    pub(crate) fn given_up(&mut self, set: PageSet, memory: &[PageRange]) -> MigrationBitmap {
        let pages = self.bitmap.pages();
        let known = self.hints.source.as_deref_mut().map(|source| {
            source.given_up(set, memory).unwrap_or_else(|error| {
                log::warn!("the pages that were given up are not counted apart: {error}");
                MigrationBitmap::new(pages)
            })
        });
        known.unwrap_or_else(|| MigrationBitmap::new(pages))
    }

    /// Pages that the guest has said to be free, if it has.
    pub(crate) fn free_pages(&mut self) -> Option<u64> {
        let asked = self.hints.are_used();
        let source = self.hints.source.as_deref_mut();
        source
            .filter(|_| asked)
            .and_then(|hints| hints.free_pages())
    }

    /// Whether the guest was asked for hints in the last epoch, and has not answered.
    pub(crate) fn guest_is_silent(&self) -> bool {
        self.hints.silent
    }

    /// Opens the next epoch. Until it is closed, nothing can be harvested.
    pub(crate) fn open(&mut self) -> Epoch<'_, 'a> {
        self.hints.open();
        Epoch { tracker: self }
    }

    /// Takes what all logs have into the bitmap. Hints for pages that the destination has are noted in `notes`.
    pub(crate) fn harvest(&mut self, notes: TooLate<'_>) -> Result<Harvest, DirtyLogError> {
        // A hint that is older than this harvest says nothing about a page that the harvest brings.
        let too_late = if self.clauses.hold(Clause::ForgetOldHints) && !self.hints.is_open {
            self.hints.forget(notes)
        } else {
            PagesBySource::default()
        };
        Ok(Harvest {
            too_late,
            ..self.harvest_logs(false)?
        })
    }

    /// To be called before the guest is paused: hints end here.
    pub(crate) fn before_pause(&mut self) {
        if !self.clauses.hold(Clause::NoHintAfterPause) {
            self.hints.open();
            self.hints.wait_for_guest();
        }
    }

    /// The last harvest, with vCPUs and devices stopped. No hint is taken after it.
    pub(crate) fn last_harvest(&mut self) -> Result<Harvest, DirtyLogError> {
        let harvest = self.harvest_logs(true)?;
        if !self.clauses.hold(Clause::NoHintAfterPause) {
            self.hints.close();
        }
        Ok(harvest)
    }

    /// What is left for the stopped guest: pages, and no hints.
    pub(crate) fn rest(&self) -> Pass<'_> {
        let broken = !self.clauses.hold(Clause::NoHintAfterPause);
        Pass {
            bitmap: &self.bitmap,
            early: &self.early,
            keep_early: true,
            hints: self.hints.used().filter(|_| broken),
            tellers: self.hints.tellers,
            free_before: None,
        }
    }

    fn harvest_logs(&mut self, last: bool) -> Result<Harvest, DirtyLogError> {
        self.trace.record(Event::HarvestBegin(last));
        let mut harvest = Harvest::default();
        let before = self.bitmap.count();
        for (index, log) in self.logs.iter_mut().enumerate() {
            if log.source() == LogSource::OwnWrites && !self.clauses.hold(Clause::MergeOwnWrites) {
                continue;
            }
            let dirty = harvest_log(index, log.as_mut(), &self.bitmap, self.trace)?;
            if log.source() == LogSource::VhostUser {
                harvest.by_back_ends += dirty;
            }
        }
        for index in self.early.occupied() {
            self.bitmap.merge(index, self.early.claim(index));
        }
        // A page may be in two logs.
        harvest.dirty = self.bitmap.count() - before;
        self.trace.record(Event::HarvestEnd);
        Ok(harvest)
    }
}

/// What a log is called in a trace.
pub(crate) fn name(index: usize, log: &dyn DirtyLog) -> Log {
    Log {
        index: u8::try_from(index).unwrap_or(u8::MAX),
        writer: log.source().into(),
    }
}

/// Harvests one log. Where that is recorded, what it brings goes through a bitmap of its own.
pub(crate) fn harvest_log(
    index: usize,
    log: &mut dyn DirtyLog,
    bitmap: &MigrationBitmap,
    trace: &Trace,
) -> Result<u64, DirtyLogError> {
    if !trace.is_on() {
        return log.harvest(bitmap);
    }
    let brought = MigrationBitmap::new(bitmap.pages());
    let dirty = log.harvest(&brought)?;
    let log = name(index, log);
    for index in brought.occupied() {
        let (word, mask) = (index as u64, brought.load(index));
        bitmap.merge(index, mask);
        let pages = PageBits { word, mask };
        trace.record(Event::Brought(Brought { log, pages }));
    }
    trace.record(Event::LogHarvested(log));
    Ok(dirty)
}

/// An epoch that is open: hints may be used.
pub(crate) struct Epoch<'t, 'a> {
    tracker: &'t mut Tracker<'a>,
}

impl Epoch<'_, '_> {
    /// The bitmap and the hints of this epoch; and about `wanted` harvests while its `pending` pages are sent.
    pub(crate) fn pass(&mut self, wanted: u32, pending: u64) -> (Pass<'_>, EarlyHarvest<'_>) {
        let tracker = &mut *self.tracker;
        let pass = Pass {
            bitmap: &tracker.bitmap,
            early: &tracker.early,
            keep_early: tracker.clauses.hold(Clause::KeepEarly),
            hints: tracker.hints.used(),
            tellers: tracker.hints.tellers,
            free_before: tracker.hints.free_before.as_ref(),
        };
        let (logs, trace) = (&mut *tracker.logs, tracker.trace);
        let early = EarlyHarvest::new(logs, &tracker.early, trace, wanted, pending);
        (pass, early)
    }

    /// Closes it: a barrier, after which no hint of this epoch arrives.
    pub(crate) fn close(self) {
        if self.tracker.clauses.hold(Clause::CloseBeforeHarvest) {
            self.tracker.hints.close();
        }
    }
}

/// One walk over the bitmap: what is to be sent, and what need not be.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    bitmap: &'a MigrationBitmap,
    early: &'a MigrationBitmap,
    keep_early: bool,
    hints: Option<&'a dyn HintSource>,
    tellers: Tellers,
    free_before: Option<&'a MigrationBitmap>,
}

impl Pass<'_> {
    pub(crate) fn bitmap(&self) -> &MigrationBitmap {
        self.bitmap
    }

    /// The pages `mask` of a word are about to be copied. Returns those that were written since the round began,
    /// as far as that is known: with the copy they need not be sent again for it.
    pub(crate) fn answer(&self, index: usize, mask: u64) -> u64 {
        self.early.clear(index, mask)
    }

    /// The pages `mask` of a word are not sent, as they are hinted. That answers no write.
    pub(crate) fn skipped(&self, index: usize, mask: u64) {
        if !self.keep_early {
            self.answer(index, mask);
        }
    }

    /// Those of the pages `mask` of a word that are hinted to be free.
    pub(crate) fn hints(&self, index: usize, mask: u64) -> Told {
        let told = self.hints.map(|hints| hints.load(index));
        told.unwrap_or_default().of(self.tellers, mask)
    }

    /// What was free in the epoch before, if there was one: likely to be free again.
    pub(crate) fn free_before(&self) -> Option<&MigrationBitmap> {
        self.free_before
    }

    /// Of the pages below this one nothing is unknown.
    pub(crate) fn answered(&self) -> u64 {
        let hints = self.hints.filter(|_| self.tellers.agent);
        hints.map_or(0, HintSource::answered)
    }

    /// How many pages from word `index` on are to be sent, and need not be as they are hinted.
    pub(crate) fn removed_from(&self, index: usize) -> u64 {
        let words = self.bitmap.occupied_from(index);
        words
            .map(|index| (index, self.bitmap.load(index)))
            .map(|(index, pending)| u64::from(self.hints(index, pending).pages().count_ones()))
            .sum()
    }

    /// How far the guest is, and how many pages it has hinted.
    pub(crate) fn guest(&self) -> (HintPhase, u64) {
        self.hints.map_or((HintPhase::Closed, 0), |hints| {
            (hints.phase(), hints.hinted_pages())
        })
    }
}

/// The hint source, dropped for the rest of the migration when it fails.
struct Hints<'a> {
    source: Option<&'a mut dyn HintSource>,
    /// Whose hints are wanted.
    tellers: Tellers,
    epoch: u64,
    is_open: bool,
    /// The guest did not answer in the last epoch.
    silent: bool,
    /// What was hinted in the last epoch.
    free_before: Option<MigrationBitmap>,
    lost: Option<String>,
    trace: &'a Trace,
}

impl<'a> Hints<'a> {
    fn prepare(
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

    /// Whether anybody's hints are used.
    fn are_used(&self) -> bool {
        self.source.is_some() && self.tellers.any()
    }

    /// The source, if its hints are used.
    fn used(&self) -> Option<&dyn HintSource> {
        self.source.as_deref().filter(|_| self.tellers.any())
    }

    fn open(&mut self) {
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

    fn close(&mut self) {
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

    /// Takes all hints out of the map. Returns how many of them came too late for their page, for the first time since
    /// it was sent.
    fn forget(&mut self, notes: TooLate<'_>) -> PagesBySource {
        let TooLate { sent, late, maps } = notes;
        let mut too_late = PagesBySource::default();
        if !self.are_used() {
            return too_late;
        }
        let Some(source) = self.source.as_deref_mut() else {
            return too_late;
        };
        let free = (self.free_before).get_or_insert_with(|| MigrationBitmap::new(sent.pages()));
        free.clear_all();
        let tellers = self.tellers;
        source.take_all(&mut |index, told| {
            // A device may say more than the guest has.
            if index >= sent.word_count() {
                return;
            }
            let told = told.of(tellers, u64::MAX);
            free.merge(index, told.pages());
            let told = told.of(tellers, sent.load(index) & !late.load(index));
            late.merge(index, told.pages());
            for (teller, bits) in Reason::by_teller(told) {
                too_late.add(teller, bits.count_ones().into());
            }
            maps.late(index, told.pages());
        });
        self.trace.record(Event::Forgotten);
        too_late
    }

    /// For broken clauses: gives the guest time to hint, and to use hinted pages again.
    fn wait_for_guest(&self) {
        if self.are_used() {
            std::thread::sleep(BROKEN_CLAUSE_WAIT);
        }
    }

    /// A source that failed is not used again in this migration: nobody knows what its map holds.
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
