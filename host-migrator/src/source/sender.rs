// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way of a page: claim a word of the bitmap, take the hints out, copy, look for zeros, send.

use std::time::{Duration, Instant};

use spec::stream::{
    MAX_SECTION_PAGES, MAX_SECTION_RUNS, PagesPrefix, SectionKind, Totals, run_to_bytes,
};
use spec::{PAGE_SIZE, PageRange};

use super::MigrationError;
use super::epoch::Pass;
use super::hold_back::HoldBack;
use super::pacing::Pacing;
use super::progress::Progress;
use crate::bitmap::{MigrationBitmap, runs_of_word};
use crate::ram::GuestRam;
use crate::stats::RoundStats;
use crate::transport::sections::{SectionReader, SectionWriter};
use crate::zero::is_zero;

const PAGE: usize = PAGE_SIZE as usize;
/// How long the sender sleeps before it looks again: at hints, at the clock, at a cancel.
const NAP: Duration = Duration::from_millis(1);

/// Both directions of the connection to the destination.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) out: SectionWriter,
    pub(crate) peer: SectionReader,
}

/// Sends pages, and knows what the destination has.
pub(crate) struct Sender<'a> {
    pub(crate) link: &'a mut Link,
    ram: &'a GuestRam,
    progress: &'a Progress,
    pub(crate) pacing: Pacing,
    /// Pages that may be other than zero at the destination.
    sent: MigrationBitmap,
    /// Pages whose latest content was not sent because of a hint.
    skipped: MigrationBitmap,
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
    ) -> Self {
        Self {
            link,
            ram,
            progress,
            pacing,
            sent: MigrationBitmap::new(ram.bitmap_pages()),
            skipped: MigrationBitmap::new(ram.bitmap_pages()),
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

    /// Pages that may be other than zero at the destination.
    pub(crate) fn sent(&self) -> &MigrationBitmap {
        &self.sent
    }

    /// Begins round `round` with `pending` pages to be sent.
    pub(crate) fn begin_round(&mut self, round: u32, pending: u64) {
        self.round = RoundStats {
            round,
            pending_before: pending,
            ..RoundStats::default()
        };
        self.round_began = Instant::now();
        self.round_bytes = self.link.out.bytes();
        self.progress.update(|status| {
            status.round = round;
            status.ram.remaining = pending * PAGE_SIZE;
        });
    }

    /// Walks over the whole bitmap once. With `hold_back` the guest runs: hints are waited for as it says,
    /// and the bandwidth limit is kept.
    pub(crate) fn walk(
        &mut self,
        pass: &Pass<'_>,
        mut hold_back: Option<HoldBack>,
    ) -> Result<(), MigrationError> {
        let paced = hold_back.is_some();
        for index in pass.bitmap().occupied() {
            if let Some(hold_back) = &mut hold_back {
                self.wait_for_hints(pass, hold_back)?;
            }
            // Claim before copy, always: a write after the claim is caught by the log.
            let claimed = pass.bitmap().claim(index);
            let hinted = claimed & pass.hints(index);
            if hinted != 0 {
                self.skip(index, hinted)?;
            }
            if claimed != hinted {
                self.send_word(index, claimed & !hinted, paced)?;
            }
        }
        self.flush(paced)
    }

    /// Ends the round: the destination is told, and answers when [`Sender::round_received`] is called.
    pub(crate) fn end_round(&mut self) -> Result<(), MigrationError> {
        self.link.out.section(SectionKind::RoundEnd, [])?;
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
        self.pacing.sent(0, began.elapsed());
        Ok(())
    }

    /// The numbers of the round that has ended, with what its harvest brought.
    pub(crate) fn take_round(&mut self, dirty: u64, too_late: u64) -> RoundStats {
        let mut round = std::mem::take(&mut self.round);
        round.ms = milliseconds(self.round_began.elapsed());
        round.dirty_harvested = dirty;
        round.pages_hinted_too_late = too_late;
        add(&mut self.totals, &round);
        round
    }

    /// The sums of all rounds that have ended.
    pub(crate) fn totals(&self) -> &RoundStats {
        &self.totals
    }

    /// What the destination is to compare with what it received.
    pub(crate) fn stream_totals(&self) -> Totals {
        Totals {
            pages_sent: self.totals.pages_sent,
            pages_zero: self.zeroed,
            pages_discarded: self.discarded,
            rounds: u64::from(self.totals.round),
            bytes: self.link.out.bytes(),
        }
    }

    /// Pages whose latest content was not sent because of a hint.
    pub(crate) fn into_skipped(self) -> MigrationBitmap {
        self.skipped
    }

    /// An error if the migration was cancelled, or the destination has given up.
    pub(crate) fn check(&mut self) -> Result<(), MigrationError> {
        if self.progress.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        Ok(self.link.peer.check_peer()?)
    }

    fn wait_for_hints(
        &mut self,
        pass: &Pass<'_>,
        hold_back: &mut HoldBack,
    ) -> Result<(), MigrationError> {
        let began = Instant::now();
        let mut now = began;
        loop {
            let (phase, hinted) = pass.guest();
            if !hold_back.wait(now, phase, hinted) {
                break;
            }
            self.check()?;
            std::thread::sleep(NAP);
            now = Instant::now();
        }
        if now != began {
            self.round.held_back_ms += milliseconds(now - began);
        }
        Ok(())
    }

    /// Leaves out the `hinted` pages of a word; what the destination has of them becomes zero.
    fn skip(&mut self, index: usize, hinted: u64) -> Result<(), MigrationError> {
        self.round.pages_hinted += u64::from(hinted.count_ones());
        self.skipped.merge(index, hinted);
        let stale = self.sent.clear(index, hinted);
        for run in runs_of_word(index as u64 * 64, stale) {
            self.round.pages_discarded += run.count();
            self.discarded += run.count();
            self.discard.push(run, self.ram);
        }
        if self.discard.is_full() {
            self.discard.flush(self.link)?;
        }
        Ok(())
    }

    fn send_word(&mut self, index: usize, bits: u64, paced: bool) -> Result<(), MigrationError> {
        let base = index as u64 * 64;
        self.skipped.clear(index, bits);
        let mut zero = 0;
        for run in runs_of_word(base, bits) {
            // A log that marks pages where there is no memory has nothing to say.
            for piece in self.ram.pieces(run) {
                zero |= self.send_run(base, piece, paced)?;
            }
        }
        let content = bits & !zero;
        self.round.pages_resent += u64::from((self.sent.load(index) & content).count_ones());
        self.sent.merge(index, content);
        self.round.pages_zero += u64::from(zero.count_ones());
        // The destination's memory starts as zero: only what it has got need be made so.
        let stale = self.sent.clear(index, zero);
        for run in runs_of_word(base, stale) {
            self.zeroed += run.count();
            self.zero.push(run, self.ram);
        }
        if self.zero.is_full() {
            self.zero.flush(self.link)?;
        }
        Ok(())
    }

    /// Sends the pages of `run` that are not zero. Returns those that are, as bits from page `base`.
    fn send_run(&mut self, base: u64, run: PageRange, paced: bool) -> Result<u64, MigrationError> {
        let mut zero = 0;
        let mut first = run.first();
        while let Some(left) = PageRange::new(first, run.end() - first) {
            let Some(part) = PageRange::new(first, left.count().min(self.batch.space())) else {
                self.flush_pages(paced)?;
                continue;
            };
            zero |= self.batch.fill(self.ram, part)? << (first - base);
            first = part.end();
        }
        Ok(zero)
    }

    fn flush(&mut self, paced: bool) -> Result<(), MigrationError> {
        self.flush_pages(paced)?;
        self.zero.flush(self.link)?;
        self.discard.flush(self.link)?;
        self.report();
        Ok(())
    }

    fn flush_pages(&mut self, paced: bool) -> Result<(), MigrationError> {
        self.check()?;
        let pages = self.batch.pages as u64;
        if pages == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let before = self.link.out.bytes();
        self.batch.send(self.link)?;
        let bytes = self.link.out.bytes() - before;
        self.pacing.sent(bytes, began.elapsed());
        self.round.pages_sent += pages;
        self.report();
        if paced && let Some(pause) = self.pacing.pause(Instant::now(), bytes) {
            self.pause(pause)?;
        }
        Ok(())
    }

    fn pause(&mut self, pause: Duration) -> Result<(), MigrationError> {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.check()?;
            std::thread::sleep(left.min(NAP * 10));
        }
    }

    /// Brings the status up to date.
    fn report(&self) {
        let (round, totals) = (&self.round, &self.totals);
        let done = round.pages_sent + round.pages_zero + round.pages_hinted;
        let bandwidth = self.pacing.bandwidth();
        self.progress.update(|status| {
            status.ram.transferred = self.link.out.bytes();
            status.ram.remaining = round.pending_before.saturating_sub(done) * PAGE_SIZE;
            status.ram.duplicate = totals.pages_zero + round.pages_zero;
            status.ram.normal = totals.pages_sent + round.pages_sent;
            status.ram.normal_bytes = status.ram.normal * PAGE_SIZE;
            status.ram.mbps = bandwidth * 8.0 / 1e6;
            status.ram.pages_per_second = (bandwidth / PAGE_SIZE as f64) as u64;
            status.expected_downtime = (status.ram.remaining as f64 * 1000.0 / bandwidth) as u64;
            status.hints.skipped = totals.pages_hinted + round.pages_hinted;
            status.hints.discarded = totals.pages_discarded + round.pages_discarded;
            status.hints.held_back = (totals.held_back_ms + round.held_back_ms) as u64;
        });
    }
}

/// The pages of the next section.
///
/// They are copied out of guest memory first, into a buffer that stays in the cache: the guest goes on
/// writing, and the zero test, the checksum and the bytes on the wire must be of the same content.
struct Batch {
    bytes: Vec<u8>,
    pages: usize,
    runs: Vec<PageRange>,
    table: Vec<u8>,
}

impl Batch {
    fn new() -> Self {
        Self {
            bytes: vec![0; MAX_SECTION_PAGES as usize * PAGE],
            pages: 0,
            runs: Vec::with_capacity(MAX_SECTION_PAGES as usize),
            table: Vec::new(),
        }
    }

    /// Pages that still fit.
    fn space(&self) -> u64 {
        MAX_SECTION_PAGES - self.pages as u64
    }

    /// Adds the pages of `range` but for those that are zero; these are returned, as bits from its first
    /// page. The range fits, and has at most 64 pages.
    fn fill(&mut self, ram: &GuestRam, range: PageRange) -> Result<u64, MigrationError> {
        let start = self.pages * PAGE;
        let area = &mut self.bytes[start..start + range.count() as usize * PAGE];
        ram.read(range, area)?;
        let (pages, _) = area.as_chunks::<PAGE>();
        let zero = (pages.iter().enumerate())
            .filter(|(_, page)| is_zero(page))
            .fold(0, |zero, (index, _)| zero | 1u64 << index);
        let content = !zero & (u64::MAX >> (64 - range.count()));
        let mut kept = 0;
        for run in runs_of_word(0, content) {
            let from = run.first() as usize * PAGE;
            let length = run.bytes() as usize;
            if from != kept {
                area.copy_within(from..from + length, kept);
            }
            kept += length;
            let run = PageRange::new(range.first() + run.first(), run.count());
            self.runs.extend(run);
        }
        self.pages += kept / PAGE;
        Ok(zero)
    }

    fn send(&mut self, link: &mut Link) -> Result<(), MigrationError> {
        let prefix = PagesPrefix {
            runs: self.runs.len() as u32,
            pages: self.pages as u32,
        };
        self.table.clear();
        self.table.extend(prefix.to_bytes());
        for run in &self.runs {
            self.table.extend(run_to_bytes(*run));
        }
        let pages = &self.bytes[..self.pages * PAGE];
        link.out.section(SectionKind::Pages, [&self.table, pages])?;
        self.pages = 0;
        self.runs.clear();
        Ok(())
    }
}

/// Runs of the next section that has runs only.
struct RunTable {
    kind: SectionKind,
    last: Option<PageRange>,
    table: Vec<u8>,
}

impl RunTable {
    fn new(kind: SectionKind) -> Self {
        Self {
            kind,
            last: None,
            table: Vec::new(),
        }
    }

    /// Adds `run`, joined to the last one where they touch inside a region.
    fn push(&mut self, run: PageRange, ram: &GuestRam) {
        for piece in ram.pieces(run) {
            let joined = self
                .last
                .filter(|last| last.end() == piece.first() && !ram.begins_region(piece.first()));
            match joined.and_then(|last| PageRange::new(last.first(), last.count() + piece.count()))
            {
                Some(joined) => self.last = Some(joined),
                None => {
                    self.close_run();
                    self.last = Some(piece);
                }
            }
        }
    }

    /// No room for the runs of another word.
    fn is_full(&self) -> bool {
        self.table.len() / spec::stream::RUN_BYTES + 65 > MAX_SECTION_RUNS
    }

    fn flush(&mut self, link: &mut Link) -> Result<(), MigrationError> {
        self.close_run();
        if !self.table.is_empty() {
            link.out.section(self.kind, [&self.table])?;
            self.table.clear();
        }
        Ok(())
    }

    fn close_run(&mut self) {
        if let Some(last) = self.last.take() {
            self.table.extend(run_to_bytes(last));
        }
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
    totals.pages_discarded += round.pages_discarded;
    totals.bytes += round.bytes;
    totals.ms += round.ms;
    totals.held_back_ms += round.held_back_ms;
    totals.dirty_harvested += round.dirty_harvested;
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
