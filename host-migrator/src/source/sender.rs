// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of a page: claim a word of the bitmap, take the hints out, copy, look for zeros, send.

use std::time::{Duration, Instant};

use spec::hint_map::Told;
use spec::stream::{MAX_SECTION_PAGES, SectionKind, Totals};
use spec::trace::{Event, PageBits};
use spec::{PAGE_SIZE, PageRange};

use super::MigrationError;
use super::estimate::{Downtime, Estimate};
use super::pacing::Pacing;
use super::progress::Progress;
use crate::memory::bitmap::{MigrationBitmap, runs_of_word};
use crate::memory::ram::GuestRam;
use crate::report::page_source::{PageSources, PagesBySource, Reason};
use crate::report::round_map::Recorder;
use crate::report::stats::RoundStats;
use crate::report::trace::Trace;
use crate::rule::early_harvest::EarlyHarvest;
use crate::rule::tracker::{Harvest, Pass, TooLate, Tracker};
use crate::sink::batch::Batch;
use crate::sink::link::Link;
use crate::sink::run_table::RunTable;
use crate::walk::hold_back::{HoldBack, Outlook, Seen};
use crate::walk::later_holes::LaterHoles;
use crate::walk::left_out::LeftOut;

/// How long the sender sleeps before it looks again: at hints, at the clock, at a cancel.
const NAP: Duration = Duration::from_millis(1);

/// After this many words (1 GiB) the sender looks for a cancel and at the peer, even if it sent nothing of them.
const WORDS_UNCHECKED: u32 = 4096;

/// Sends pages, and knows what the destination has.
pub(crate) struct Sender<'a> {
    pub(crate) link: &'a mut Link,
    ram: &'a GuestRam,
    progress: &'a Progress,
    trace: &'a Trace,
    pub(crate) pacing: Pacing,
    pub(crate) estimate: Estimate,
    /// Time in this walk that was not spent on looking for pages and at them.
    elsewhere: Duration,
    /// When the last sections of the round began to be sent, and the bytes sent before.
    last_sections: (Instant, u64),
    /// The bandwidth limit is kept to: the guest runs.
    keeps_pace: bool,
    /// Words of the bitmap that were claimed since the last [`Sender::check`].
    unchecked_words: u32,
    /// Bytes sent that have had their time at the limit.
    paced: u64,
    /// Pages that may be other than zero at the destination.
    sent: MigrationBitmap,
    /// Of these, pages that were hinted after they had been sent, and are counted for it.
    late: MigrationBitmap,
    /// Pages whose latest content was not sent, and why.
    left_out: LeftOut,
    /// Pages are looked at for zeros, and not sent like others.
    pub(crate) find_zeros: bool,
    /// Pages that read as zero when the round began, unless the guest has written them since.
    holes: Option<LaterHoles>,
    pub(crate) maps: Recorder,
    batch: Batch,
    zero: RunTable,
    discard: RunTable,
    round: RoundStats,
    round_began: Instant,
    round_bytes: u64,
    totals: RoundStats,
    discarded: u64,
    zeroed: u64,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(
        link: &'a mut Link,
        ram: &'a GuestRam,
        progress: &'a Progress,
        pacing: Pacing,
        estimate: Estimate,
        trace: &'a Trace,
        left_out: LeftOut,
    ) -> Self {
        Self {
            paced: link.out.bytes(),
            link,
            ram,
            progress,
            trace,
            pacing,
            estimate,
            elsewhere: Duration::ZERO,
            last_sections: (Instant::now(), 0),
            keeps_pace: true,
            unchecked_words: 0,
            sent: MigrationBitmap::new(ram.bitmap_pages()),
            late: MigrationBitmap::new(ram.bitmap_pages()),
            left_out,
            find_zeros: true,
            holes: None,
            maps: Recorder::default(),
            batch: Batch::new(),
            zero: RunTable::new(SectionKind::Zero),
            discard: RunTable::new(SectionKind::Discard),
            round: RoundStats::default(),
            round_began: Instant::now(),
            round_bytes: 0,
            totals: RoundStats::default(),
            discarded: 0,
            zeroed: 0,
        }
    }

    /// What a harvest needs: where to look for pages that were hinted too late, and where to note them.
    pub(crate) fn for_harvest(&mut self) -> TooLate<'_> {
        TooLate {
            sent: &self.sent,
            late: &self.late,
            maps: &mut self.maps,
        }
    }

    /// Begins round `round` with `pending` pages to be sent.
    pub(crate) fn begin_round(&mut self, round: u32, pending: u64) {
        self.round = RoundStats {
            round,
            pending_before: pending,
            ..RoundStats::default()
        };
        self.holes = None;
        self.maps.begin(round);
        self.round_began = Instant::now();
        self.round_bytes = self.link.out.bytes();
        self.progress.update(|status| {
            status.round = round;
            status.ram.remaining = pending * PAGE_SIZE;
        });
    }

    /// Counts pages to the round that were left out before it began.
    pub(crate) fn count_left_out(&mut self, pages: PagesBySource) {
        self.round.pages_by_source += pages;
    }

    /// Has the round that has begun take holes for the zeros that they are, and count them for one of `sources`.
    pub(crate) fn look_for_holes(
        &mut self,
        tracker: &mut Tracker<'_>,
        sources: PageSources,
    ) -> Result<(), MigrationError> {
        let mut go_on = || !self.progress.is_cancelled();
        let holes = LaterHoles::ask(tracker, self.ram, sources, self.trace, &mut go_on)?;
        self.holes = Some(holes);
        Ok(())
    }

    /// Sends what is pending, and keeps to the bandwidth limit. The guest runs and may tell meanwhile that pages are
    /// free: those that were free in the epoch before, and are pending because they were used for a while, go last;
    /// before a page of which nothing is known, hints are waited for as `hold_back` says.
    pub(crate) fn walk_while_it_runs(
        &mut self,
        pass: &Pass<'_>,
        early: &mut EarlyHarvest<'_>,
        outlook: Outlook,
    ) -> Result<(), MigrationError> {
        self.keeps_pace = true;
        self.batch.set_most(self.pacing.section_bytes() / PAGE_SIZE);
        let opened = Instant::now();
        self.elsewhere = Duration::ZERO;
        let mut hold_back = HoldBack::new(outlook);
        // What is pending in later rounds was used just now, and what is free otherwise says nothing about it.
        let first_round = self.round.round == 1;
        let free = || match first_round {
            true => outlook.free.unwrap_or(0).max(pass.guest().1),
            false => 0,
        };
        if let Some(free_before) = pass.free_before() {
            for index in pass.bitmap().occupied() {
                let claimed = pass.bitmap().clear(index, !free_before.load(index));
                self.send_claimed(pass, index, claimed)?;
                self.harvest_early(early, free)?;
            }
        }
        for index in pass.bitmap().occupied() {
            self.wait_for_hints(pass, index, opened, &mut hold_back)?;
            let claimed = pass.bitmap().claim(index);
            self.send_claimed(pass, index, claimed)?;
            self.harvest_early(early, free)?;
        }
        let looking = opened.elapsed().saturating_sub(self.elsewhere);
        let looked_at = self.round.pages_sent + self.batch.pages() + self.round.pages_zero;
        self.estimate.looked_at(looked_at, looking);
        self.flush()
    }

    fn harvest_early(
        &mut self,
        early: &mut EarlyHarvest<'_>,
        free: impl FnOnce() -> u64,
    ) -> Result<(), MigrationError> {
        let began = Instant::now();
        early.when_due(self.round.pages_sent, free)?;
        self.elsewhere += began.elapsed();
        Ok(())
    }

    /// Sends all that is pending, as fast as it goes: the guest stands still.
    pub(crate) fn walk_the_rest(&mut self, pass: &Pass<'_>) -> Result<(), MigrationError> {
        self.keeps_pace = false;
        self.batch.set_most(MAX_SECTION_PAGES);
        for index in pass.bitmap().occupied() {
            let claimed = pass.bitmap().claim(index);
            self.send_claimed(pass, index, claimed)?;
        }
        self.flush()
    }

    /// Sends or skips the `claimed` pages of a word. Claim before copy, always: a write after the claim is caught by
    /// the log.
    fn send_claimed(
        &mut self,
        pass: &Pass<'_>,
        index: usize,
        claimed: u64,
    ) -> Result<(), MigrationError> {
        if claimed == 0 {
            return Ok(());
        }
        self.unchecked_words += 1;
        if self.unchecked_words >= WORDS_UNCHECKED {
            self.check()?;
        }
        self.record(index, claimed, Event::Claim);
        let back = &mut self.round.back_dirty_by_source;
        self.left_out.forget(index, claimed, back);
        let told = pass.hints(index, claimed);
        let hinted = told.pages();
        if hinted != 0 {
            pass.skipped(index, hinted);
            self.skip(index, told)?;
        }
        if claimed != hinted {
            self.send_word(pass, index, claimed & !hinted)?;
        }
        Ok(())
    }

    /// Ends the round: the destination is told, and answers when [`Sender::round_received`] is called.
    pub(crate) fn end_round(&mut self) -> Result<(), MigrationError> {
        self.link.out.section(SectionKind::RoundEnd, [])?;
        self.trace.record(Event::RoundSent(self.round.round.into()));
        // What follows is counted to the next round, the machine's state after the last one included.
        self.link.out.set_round(self.round.round + 1);
        self.round.bytes = self.link.out.bytes() - self.round_bytes;
        Ok(())
    }

    /// Waits until the round is in the destination's memory. What socket buffers still hold would
    /// otherwise be waited for while the guest is stopped, and make the channel look faster than it is.
    pub(crate) fn round_received(&mut self) -> Result<(), MigrationError> {
        let began = Instant::now();
        self.link
            .peer
            .expect(SectionKind::RoundReceived, "RoundReceived")?;
        let waited = began.elapsed();
        self.pacing.sent(0, waited);
        let (sent_at, before) = self.last_sections;
        let way = sent_at.elapsed().saturating_sub(self.estimate.round_trip());
        self.pacing.tried(self.link.out.bytes() - before, way);
        self.estimate.answered(waited);
        // The last sections went without it, to see how fast they go.
        self.keep_pace()
    }

    /// How long the guest would be stopped with `pending` pages to be sent.
    pub(crate) fn expected_downtime(&self, pending: u64) -> Option<Downtime> {
        self.estimate.downtime(pending, &self.pacing)
    }

    /// The numbers of the round that has ended, with what its harvest brought.
    pub(crate) fn take_round(&mut self, harvest: Harvest) -> RoundStats {
        let Harvest {
            dirty, too_late, ..
        } = harvest;
        let mut round = std::mem::take(&mut self.round);
        round.ms = milliseconds(self.round_began.elapsed());
        round.dirty_harvested = dirty;
        round.pages_hinted_too_late = too_late.sum();
        round.too_late_by_source = too_late;
        add(&mut self.totals, &round);
        round
    }

    /// The sums of all rounds that have ended.
    pub(crate) fn totals(&self) -> &RoundStats {
        &self.totals
    }

    /// What the destination is to compare with what it received; the bytes are counted as they are sent.
    pub(crate) fn stream_totals(&self) -> Totals {
        Totals {
            pages_sent: self.totals.pages_sent,
            pages_zero: self.zeroed,
            pages_discarded: self.discarded,
            rounds: u64::from(self.totals.round),
            bytes: 0,
        }
    }

    /// Pages whose latest content was not sent because of a hint.
    pub(crate) fn into_skipped(self) -> MigrationBitmap {
        self.left_out.hinted()
    }

    /// An error if the migration was cancelled, or the destination has given up.
    pub(crate) fn check(&mut self) -> Result<(), MigrationError> {
        self.unchecked_words = 0;
        if self.progress.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        Ok(self.link.peer.check_peer()?)
    }

    /// Waits before the pages of word `index` as `hold_back` says, unless all is known of them.
    fn wait_for_hints(
        &mut self,
        pass: &Pass<'_>,
        index: usize,
        opened: Instant,
        hold_back: &mut HoldBack,
    ) -> Result<(), MigrationError> {
        let began = Instant::now();
        let elsewhere = self.elsewhere;
        let mut now = began;
        loop {
            if pass.answered() / 64 > index as u64 {
                hold_back.goes_on(now - opened);
                break;
            }
            let (phase, hinted) = pass.guest();
            let seen = Seen {
                now: now - opened,
                phase,
                hinted,
                pages_per_second: self.pacing.pages_per_second(),
            };
            let skipped = self.round.pages_hinted;
            let wait = hold_back.wait(seen, || skipped + pass.removed_from(index));
            if !wait {
                break;
            }
            if now == began {
                // What is known to be needed does not wait.
                self.flush_pages()?;
            }
            self.check()?;
            std::thread::sleep(NAP);
            now = Instant::now();
        }
        if now != began {
            self.round.held_back_ms += milliseconds(now - began);
            // What was sent meanwhile is in it.
            self.elsewhere = elsewhere + (now - began);
        }
        Ok(())
    }

    /// Leaves out the pages of a word that were `told` to be free; what the destination has of them becomes zero.
    fn skip(&mut self, index: usize, told: Told) -> Result<(), MigrationError> {
        let hinted = told.pages();
        self.record(index, hinted, Event::Skip);
        self.round.pages_hinted += u64::from(hinted.count_ones());
        let pages = &mut self.round.pages_by_source;
        self.left_out.note_hinted(index, told, pages);
        let stale = self.sent.clear(index, hinted);
        self.maps.skipped(index, hinted, stale);
        for run in runs_of_word(index as u64 * 64, stale) {
            self.round.pages_discarded += run.count();
            self.discarded += run.count();
            self.discard.push(run, self.ram);
        }
        if self.discard.is_full(self.pacing.section_bytes()) {
            self.discard.flush(self.link, self.trace)?;
            self.keep_pace()?;
        }
        Ok(())
    }

    fn send_word(
        &mut self,
        pass: &Pass<'_>,
        index: usize,
        bits: u64,
    ) -> Result<(), MigrationError> {
        let base = index as u64 * 64;
        self.record(index, bits, Event::Copy);
        let written = pass.answer(index, bits);
        self.round.pages_written_before_copy += u64::from(written.count_ones());
        let known = self.holes.as_ref();
        let holes = known.map_or(0, |known| known.of(index, bits & !written));
        let mut zero = holes;
        for run in runs_of_word(base, bits & !zero) {
            // A log that marks pages where there is no memory has nothing to say.
            for piece in self.ram.pieces(run) {
                zero |= self.send_run(base, piece)?;
            }
        }
        self.record(index, holes, Event::HoleTaken);
        self.record(index, zero, Event::Zero);
        let content = bits & !zero;
        self.round.pages_resent += u64::from((self.sent.load(index) & content).count_ones());
        self.maps.sent(index, content, self.sent.load(index));
        self.maps.zero(index, zero);
        self.sent.merge(index, content);
        // It may be too late for them once more.
        self.late.clear(index, content);
        self.round.pages_zero += u64::from(zero.count_ones());
        self.note_zeros(index, zero & !holes, holes);
        // The destination's memory starts as zero: only what it has got need be made so.
        let stale = self.sent.clear(index, zero);
        for run in runs_of_word(base, stale) {
            self.zeroed += run.count();
            self.zero.push(run, self.ram);
        }
        if self.zero.is_full(self.pacing.section_bytes()) {
            self.zero.flush(self.link, self.trace)?;
            self.keep_pace()?;
        }
        Ok(())
    }

    /// Counts pages of a word that were found to be zero, and those that were holes, for what made them so.
    fn note_zeros(&mut self, index: usize, found: u64, holes: u64) {
        let why = self.holes.as_ref().map(|known| known.reasons(index, holes));
        for (reason, bits) in why.into_iter().flatten().chain([(Reason::Zero, found)]) {
            let pages = self.left_out.note(index, bits, reason);
            self.round.pages_by_source.add(reason, pages);
        }
    }

    /// Sends the pages of `run` that are not zero. Returns those that are, as bits from page `base`.
    fn send_run(&mut self, base: u64, run: PageRange) -> Result<u64, MigrationError> {
        let mut zero = 0;
        let mut first = run.first();
        while let Some(left) = PageRange::new(first, run.end() - first) {
            let Some(part) = PageRange::new(first, left.count().min(self.batch.space())) else {
                self.flush_pages()?;
                continue;
            };
            zero |= self.batch.fill(self.ram, part, self.find_zeros)? << (first - base);
            first = part.end();
        }
        Ok(zero)
    }

    /// Sends what has been gathered, the last of the round.
    fn flush(&mut self) -> Result<(), MigrationError> {
        self.last_sections = (Instant::now(), self.link.out.bytes());
        self.send_pages()?;
        self.zero.flush(self.link, self.trace)?;
        self.discard.flush(self.link, self.trace)?;
        self.report();
        Ok(())
    }

    fn flush_pages(&mut self) -> Result<(), MigrationError> {
        self.send_pages()?;
        self.keep_pace()
    }

    fn send_pages(&mut self) -> Result<(), MigrationError> {
        self.check()?;
        let pages = self.batch.pages();
        if pages == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let before = self.link.out.bytes();
        self.batch.send(self.link)?;
        self.trace.record(Event::PagesSent(pages));
        let bytes = self.link.out.bytes() - before;
        let took = began.elapsed();
        self.pacing.sent(bytes, took);
        self.elsewhere += took;
        self.round.pages_sent += pages;
        self.report();
        Ok(())
    }

    /// Waits until all that was sent since the last call has had its time at the bandwidth limit.
    fn keep_pace(&mut self) -> Result<(), MigrationError> {
        let bytes = self.link.out.bytes();
        let new = bytes - std::mem::replace(&mut self.paced, bytes);
        if !self.keeps_pace {
            return Ok(());
        }
        let now = Instant::now();
        let pause = self.pacing.pause(now, new).unwrap_or_default();
        let end = now + pause;
        self.elsewhere += pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.check()?;
            std::thread::sleep(left.min(NAP * 10));
        }
    }

    /// Records what happens to the pages `mask` of a word, if there are any.
    fn record(&self, index: usize, mask: u64, event: fn(PageBits) -> Event) {
        if mask != 0 {
            let word = index as u64;
            self.trace.record(event(PageBits { word, mask }));
        }
    }

    /// Brings the status up to date.
    fn report(&self) {
        let (round, totals) = (&self.round, &self.totals);
        let done = round.pages_sent + round.pages_zero + round.pages_hinted;
        let measured = self.pacing.measured();
        let remaining = round.pending_before.saturating_sub(done);
        let expected = self.expected_downtime(remaining);
        self.progress.update(|status| {
            status.ram.transferred = self.link.out.bytes();
            status.ram.remaining = remaining * PAGE_SIZE;
            status.ram.duplicate = totals.pages_zero + round.pages_zero;
            status.ram.normal = totals.pages_sent + round.pages_sent;
            status.ram.normal_bytes = status.ram.normal * PAGE_SIZE;
            status.ram.mbps = measured.map(|bytes| bytes * 8.0 / 1e6);
            status.ram.pages_per_second = measured.map(|bytes| (bytes / PAGE_SIZE as f64) as u64);
            status.expected_downtime = expected.map(|expected| expected.sum().as_millis() as u64);
            status.hints.pages_by_source = totals.pages_by_source;
            status.hints.pages_by_source += round.pages_by_source;
            status.hints.skipped = totals.pages_hinted + round.pages_hinted;
            status.hints.discarded = totals.pages_discarded + round.pages_discarded;
            status.hints.held_back = (totals.held_back_ms + round.held_back_ms) as u64;
        });
    }
}

fn add(totals: &mut RoundStats, round: &RoundStats) {
    if totals.round == 0 {
        totals.pending_before = round.pending_before;
    }
    totals.round = round.round;
    totals.pages_sent += round.pages_sent;
    totals.pages_resent += round.pages_resent;
    totals.pages_zero += round.pages_zero;
    totals.pages_hinted += round.pages_hinted;
    totals.pages_hinted_too_late += round.pages_hinted_too_late;
    totals.pages_by_source += round.pages_by_source;
    totals.too_late_by_source += round.too_late_by_source;
    totals.back_dirty_by_source += round.back_dirty_by_source;
    totals.pages_discarded += round.pages_discarded;
    totals.bytes += round.bytes;
    totals.ms += round.ms;
    totals.held_back_ms += round.held_back_ms;
    totals.dirty_harvested += round.dirty_harvested;
    totals.pages_written_before_copy += round.pages_written_before_copy;
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
