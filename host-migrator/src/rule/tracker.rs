// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The order that the rule requires, in one place.
//!
//! [`Tracker`] owns the migration bitmap, and only arming makes one. An open [`Epoch`] borrows the tracker, so
//! nothing can be harvested before the epoch is closed. A harvest is one call, so no epoch can open before the harvest is
//! complete. The compiler checks both.

use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use spec::PageRange;
use spec::control::PageSet;
use spec::hint_map::{HintBits, Tellers};
use spec::trace::event::{Brought, Log};
use spec::trace::{Event, PageBits};

use super::delivered::Delivered;
use super::given_up::GivenUp;
use super::hint_life::HintLife;
use super::known_holes::KnownHoles;
use super::pass::Pass;
use crate::memory::bitmap::MigrationBitmap;
use crate::report::page_source::{PageSource, PageSources, PagesBySource, Reason};
use crate::report::trace::Trace;
use crate::rule::clause::{Clause, Clauses};
use crate::vm::dirty_log::{DirtyLog, DirtyLogError, LogSource};
use crate::vm::hint_source::HintSource;

/// The dirty logs, the hints and the migration bitmap: the pages still to be sent.
pub struct Tracker<'a> {
    memory: Vec<PageRange>,
    bitmap: MigrationBitmap,
    /// Early pages: written in this round, found by an early harvest, and not copied since.
    early: MigrationBitmap,
    /// Pages that were early and have been copied since, until the next harvest.
    early_copied: MigrationBitmap,
    delivered: Delivered,
    holes: Option<KnownHoles>,
    logs: &'a mut [Box<dyn DirtyLog>],
    hints: HintLife<'a>,
    clauses: Clauses,
    trace: &'a Trace,
}

/// What a harvest brought.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Harvest {
    /// Pages that are now to be sent and were not before.
    pub dirty: u64,
    /// Dirty bits that back ends have set: for what they wrote, and for what they discarded.
    pub by_back_ends: u64,
    /// Hints that came after their page had been sent.
    pub too_late: PagesBySource,
    /// How long it took to harvest the logs.
    pub took: Duration,
}

impl AddAssign for Harvest {
    fn add_assign(&mut self, other: Self) {
        self.dirty += other.dirty;
        self.by_back_ends += other.by_back_ends;
        self.too_late += other.too_late;
        self.took += other.took;
    }
}

impl fmt::Debug for Tracker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("pending", &self.bitmap.count())
            .field("epochs", &self.hints.epoch)
            .finish_non_exhaustive()
    }
}

/// What a harvest needs of the code that sends pages.
pub trait Flush {
    /// Why pages cannot be sent.
    type Error: From<DirtyLogError>;

    /// Sends all that was claimed in `pass` (pages, zeros and discards), and returns when nothing that is sent later can
    /// overtake it.
    ///
    /// # Errors
    /// If it cannot be sent. The harvest is not made.
    fn flush(&mut self, pass: &Pass<'_>) -> Result<(), Self::Error>;

    /// Whether pages are discarded at the destination that are hinted after they were sent.
    fn wants_late_discards(&self) -> bool {
        false
    }

    /// Gathers a discard of the pages of word `index` that were `told` to be free after they had been sent. They are sent when
    /// they are flushed, or before.
    ///
    /// # Errors
    /// If they cannot be sent. The harvest is not made.
    fn discard_late(
        &mut self,
        pass: &Pass<'_>,
        index: usize,
        told: HintBits,
    ) -> Result<(), Self::Error> {
        let _ = (pass, index, told);
        Ok(())
    }

    /// Pages of word `index` were `told` to be free after they had been sent, for the first time since. For statistics.
    fn too_late(&mut self, index: usize, told: HintBits) {
        let _ = (index, told);
    }
}

impl<'a> Tracker<'a> {
    /// Starts all `logs`, so that every page is armed, and marks every page of `memory` as to be sent. Of `hints` those of
    /// `tellers` are used. `trace` records what happens; [`Trace::default`] records nothing.
    ///
    /// # Errors
    /// [`DirtyLogError`] if a log cannot be started.
    pub fn arm(
        memory: &[PageRange],
        logs: &'a mut [Box<dyn DirtyLog>],
        hints: Option<&'a mut dyn HintSource>,
        tellers: Tellers,
        trace: &'a Trace,
    ) -> Result<Self, DirtyLogError> {
        Self::arm_with(memory, logs, hints, tellers, Clauses::default(), trace)
    }

    /// As [`Tracker::arm`], with `clauses` that a test may have switched off.
    pub(crate) fn arm_with(
        memory: &[PageRange],
        logs: &'a mut [Box<dyn DirtyLog>],
        hints: Option<&'a mut dyn HintSource>,
        tellers: Tellers,
        clauses: Clauses,
        trace: &'a Trace,
    ) -> Result<Self, DirtyLogError> {
        trace.record(Event::Begin(logs.len() as u64));
        let pages = memory.iter().map(|range| range.end()).max().unwrap_or(0);
        let bitmap = MigrationBitmap::new(pages);
        for range in memory {
            bitmap.insert(*range);
            trace.record(Event::Memory(*range));
        }
        let mut tracker = Self {
            memory: memory.to_vec(),
            hints: HintLife::prepare(hints, tellers, pages, trace),
            early: MigrationBitmap::new(pages),
            early_copied: MigrationBitmap::new(pages),
            delivered: Delivered::new(pages),
            holes: None,
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
    pub fn bitmap(&self) -> &MigrationBitmap {
        &self.bitmap
    }

    /// Epochs opened.
    pub fn epochs(&self) -> u64 {
        self.hints.epoch
    }

    /// Whether hints are used.
    pub fn uses_hints(&self) -> bool {
        self.hints.are_used()
    }

    /// Why hints are not used any more.
    pub fn hints_lost(&self) -> Option<&str> {
        self.hints.lost.as_deref()
    }

    /// Asks the device, if there is one, for the sets that `sources` need.
    pub(crate) fn given_up(&mut self, sources: PageSources) -> GivenUp {
        let mut ask = |source, set| match sources.contains(source) {
            true => self.pages_of(set),
            false => MigrationBitmap::new(self.bitmap.pages()),
        };
        GivenUp::new(
            ask(PageSource::Balloon, PageSet::Ballooned),
            ask(PageSource::Reported, PageSet::Reported),
        )
    }

    /// The pages of `set`, if the source knows them.
    fn pages_of(&mut self, set: PageSet) -> MigrationBitmap {
        let pages = self.bitmap.pages();
        let memory = &self.memory;
        let known = self.hints.source.as_deref_mut().map(|source| {
            source.given_up(set, memory).unwrap_or_else(|error| {
                log::warn!("ballooned and reported pages are not counted apart: {error}");
                MigrationBitmap::new(pages)
            })
        });
        known.unwrap_or_else(|| MigrationBitmap::new(pages))
    }

    /// How many pages are free according to the guest, if it said so.
    pub fn free_pages(&mut self) -> Option<u64> {
        let asked = self.hints.are_used();
        let source = self.hints.source.as_deref_mut();
        source
            .filter(|_| asked)
            .and_then(|hints| hints.free_pages())
    }

    /// Whether the guest was asked for hints in the last epoch, and has not answered.
    pub fn guest_is_silent(&self) -> bool {
        self.hints.silent
    }

    /// Takes the holes of the memory files that `find` finds for zero until the next harvest, and counts them
    /// for one of `sources`. Call it between two epochs.
    ///
    /// # Errors
    /// That of `find`.
    pub(crate) fn look_for_holes<E>(
        &mut self,
        sources: PageSources,
        find: impl FnOnce(&mut dyn FnMut(PageRange)) -> Result<bool, E>,
    ) -> Result<(), E> {
        let given_up = self.given_up(sources);
        self.trace.record(Event::HolesAsked);
        let holes = KnownHoles::new(self.bitmap.pages(), given_up);
        find(&mut |hole| holes.insert(hole))?;
        self.holes = Some(holes);
        Ok(())
    }

    /// Opens the next epoch. Until it is closed, nothing can be harvested.
    pub fn open(&mut self) -> Epoch<'_, 'a> {
        self.hints.open();
        Epoch { tracker: self }
    }

    /// Ends hints. Call it before the guest is paused.
    pub(crate) fn before_pause(&mut self) {
        if !self.clauses.hold(Clause::NoHintAfterPause) {
            self.hints.open();
            self.hints.wait_for_guest();
        }
    }

    /// The last harvest, with vCPUs and devices stopped. No hint is taken after it.
    ///
    /// # Errors
    /// [`DirtyLogError`]: bits may be lost, and the migration must fail.
    pub fn last_harvest(&mut self) -> Result<Harvest, DirtyLogError> {
        self.forget_holes();
        let harvest = self.harvest_logs(true)?;
        if !self.clauses.hold(Clause::NoHintAfterPause) {
            self.hints.close();
        }
        Ok(harvest)
    }

    /// The remaining pages of the stopped guest. There are no hints.
    pub fn rest(&self) -> Pass<'_> {
        let broken = !self.clauses.hold(Clause::NoHintAfterPause);
        Pass {
            keep_early: true,
            hints: self.hints.used().filter(|_| broken),
            free_before: None,
            ..self.pass()
        }
    }

    fn pass(&self) -> Pass<'_> {
        Pass {
            bitmap: &self.bitmap,
            early: &self.early,
            early_copied: &self.early_copied,
            keep_early: self.clauses.hold(Clause::KeepEarly),
            hints: self.hints.used(),
            tellers: self.hints.tellers,
            free_before: self.hints.free_before.as_ref(),
            delivered: &self.delivered,
            holes: self.holes.as_ref(),
            trace: self.trace,
        }
    }

    /// Has pages discarded that were hinted after they had been sent. The epoch is closed, and no harvest has begun: a write after
    /// such a hint is in a log. Returns how many pages are hinted too late for the first time.
    fn discard_late<F: Flush>(&self, sender: &mut F) -> Result<PagesBySource, F::Error> {
        let pass = self.pass();
        let spare = self.clauses.hold(Clause::SpareEarlyCopies);
        let mut too_late = PagesBySource::default();
        let mut sent = Ok(());
        pass.hinted_words(&mut |index| {
            if sent.is_err() {
                return;
            }
            let told = pass.discard_late(index, spare);
            if told.pages() == 0 {
                return;
            }
            sent = sender.discard_late(&pass, index, told);
            for (teller, bits) in Reason::by_teller(told) {
                too_late.add(teller, bits.count_ones().into());
            }
            sender.too_late(index, told);
        });
        sent?;
        sender.flush(&pass)?;
        Ok(too_late)
    }

    /// Takes what all logs have into the bitmap. What was learnt of a page before it does not outlive it.
    fn harvest(&mut self, late: &mut dyn FnMut(usize, HintBits)) -> Result<Harvest, DirtyLogError> {
        // A hint that is older than this harvest says nothing about a page that the harvest brings.
        let too_late = if self.clauses.hold(Clause::ForgetOldHints) && !self.hints.is_open {
            let pages = self.bitmap.pages();
            self.hints.forget(&self.delivered, pages, late)
        } else {
            PagesBySource::default()
        };
        self.forget_holes();
        Ok(Harvest {
            too_late,
            ..self.harvest_logs(false)?
        })
    }

    fn forget_holes(&mut self) {
        if self.clauses.hold(Clause::ForgetHoles) {
            self.holes = None;
        }
    }

    fn harvest_logs(&mut self, last: bool) -> Result<Harvest, DirtyLogError> {
        self.trace.record(Event::HarvestBegin(last));
        let began = Instant::now();
        let mut harvest = Harvest::default();
        let before = self.bitmap.added();
        for (index, log) in self.logs.iter_mut().enumerate() {
            if log.source() == LogSource::OwnWrites && !self.clauses.hold(Clause::MergeOwnWrites) {
                continue;
            }
            let dirty = harvest_log(index, log.as_mut(), &self.bitmap, self.trace)?;
            if log.source() == LogSource::VhostUser {
                harvest.by_back_ends += dirty;
            }
        }
        self.early.move_into(&self.bitmap, 0);
        self.early_copied.clear_all();
        // A page may be in two logs.
        harvest.dirty = self.bitmap.added() - before;
        harvest.took = began.elapsed();
        self.trace.record(Event::HarvestEnd);
        Ok(harvest)
    }
}

/// A log's name in a trace.
pub(crate) fn name(index: usize, log: &dyn DirtyLog) -> Log {
    Log {
        index: u8::try_from(index).unwrap_or(u8::MAX),
        writer: log.source().into(),
    }
}

/// Harvests one log. If there is a trace, the harvest goes through a bitmap of its own.
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
#[derive(Debug)]
pub struct Epoch<'t, 'a> {
    tracker: &'t mut Tracker<'a>,
}

impl Epoch<'_, '_> {
    /// The pages that are pending now, with the hints of this epoch.
    pub fn pass(&self) -> Pass<'_> {
        self.tracker.pass()
    }

    /// Harvests the vCPUs' logs in the middle of a round, so that a page that was written before its copy need not be sent
    /// again for it.
    ///
    /// # Errors
    /// [`DirtyLogError`]: bits may be lost, and the migration must fail.
    pub fn harvest_early(&mut self) -> Result<(), DirtyLogError> {
        let Tracker {
            logs, early, trace, ..
        } = &mut *self.tracker;
        trace.record(Event::EarlyBegin);
        for (index, log) in logs.iter_mut().enumerate() {
            // The other writers write little, and their logs have another use at the end of the round.
            if log.source() == LogSource::Kvm {
                harvest_log(index, log.as_mut(), early, trace)?;
            }
        }
        trace.record(Event::EarlyEnd);
        Ok(())
    }

    /// A harvest at any moment, in the middle of a round too, and the next epoch.
    ///
    /// `sender` flushes. Then the epoch is closed, pages are discarded that were hinted after they had been sent, if `sender` wants
    /// that ([`Flush::wants_late_discards`]), the epoch's hints are forgotten, what was known of holes is forgotten, and the
    /// logs are harvested.
    ///
    /// # Errors
    /// That of [`Flush::flush`], or of a log: bits may be lost, and the migration must fail.
    pub fn sync<F: Flush>(self, sender: &mut F) -> Result<(Self, Harvest), F::Error> {
        let (tracker, harvest) = self.end(sender)?;
        tracker.hints.open();
        Ok((Epoch { tracker }, harvest))
    }
}

impl<'t, 'a> Epoch<'t, 'a> {
    /// As [`Epoch::sync`], and no epoch is opened.
    ///
    /// # Errors
    /// As [`Epoch::sync`].
    pub fn end<F: Flush>(self, sender: &mut F) -> Result<(&'t mut Tracker<'a>, Harvest), F::Error> {
        let Self { tracker } = self;
        if tracker.clauses.hold(Clause::FlushTables) {
            sender.flush(&tracker.pass())?;
        }
        if tracker.clauses.hold(Clause::CloseBeforeHarvest) {
            tracker.hints.close();
        }
        let mut discarded = PagesBySource::default();
        if sender.wants_late_discards() && tracker.hints.are_used() {
            discarded = tracker.discard_late(sender)?;
        }
        let mut harvest = tracker.harvest(&mut |index, told| sender.too_late(index, told))?;
        harvest.too_late += discarded;
        Ok((tracker, harvest))
    }
}
