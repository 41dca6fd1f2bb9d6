// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rounds of a migration as they are sent: a walk gives the work, and the way out takes it.

use std::time::{Duration, Instant};

use spec::PAGE_SIZE;
use spec::hint_map::{HintBits, HintPhase};
use spec::stream::{MAX_SECTION_PAGES, Totals};

use super::converging::{Converging, Harvested};
use super::error::MigrationError;
use super::outgoing::{NAP, Outgoing};
use crate::compression::{Compression, ZstdLevel};
use crate::report::events::MigrationEvent;
use crate::report::page_source::PagesBySource;
use crate::report::rates::ChannelRates;
use crate::report::stats::{CompressionStatus, RoundStats};
use crate::rule::{EarlyPlan, Epoch, Flush, Harvest, Pass};
use crate::sink::Sink;
use crate::walk::hold_back::Outlook;
use crate::walk::{Moment, Step, Walk};

/// The most words of 64 pages (16 MiB in all) that a step looks at before the sender looks at the clock.
const WORDS_A_STEP: u64 = 64;
/// After this many steps of the walk (1 GiB) the sender looks for a cancel and at the peer, even if it sent nothing.
const STEPS_UNCHECKED: u32 = 64;

/// A guest that has begun to answer and hints nothing for so long is not waited for any longer when all is sent.
const LONGEST_SILENCE: Duration = Duration::from_secs(1);

/// Sends rounds.
pub(crate) struct Sender<'a, S> {
    pub(crate) out: Outgoing<'a, S>,
    pub(crate) walk: Walk<'a>,
    pub(crate) converging: Converging<'a>,
    /// Steps since the last [`Outgoing::check`].
    unchecked_steps: u32,
    /// What harvests in the middle of this round have brought.
    synced: Harvest,
    round_began: Instant,
    round_bytes: u64,
    /// When the logs were harvested last.
    harvested_at: Instant,
    totals: RoundStats,
    /// Bytes sent on each channel, when that was looked at last.
    bytes_by_channel: Vec<u64>,
    rates: ChannelRates,
}

/// What a round does besides walking.
#[derive(Clone, Copy)]
pub(crate) struct RoundPlan {
    pub(crate) outlook: Outlook,
    pub(crate) early: EarlyPlan,
    /// Pages between two harvests in the middle of the round; none: it has none.
    pub(crate) sync_pages: Option<u64>,
    /// As in the parameters.
    pub(crate) wait_for_hints: Option<Duration>,
}

impl<'a, S: Sink> Sender<'a, S> {
    pub(crate) fn new(out: Outgoing<'a, S>, walk: Walk<'a>, converging: Converging<'a>) -> Self {
        Self {
            out,
            walk,
            converging,
            unchecked_steps: 0,
            synced: Harvest::default(),
            round_began: Instant::now(),
            round_bytes: 0,
            harvested_at: Instant::now(),
            totals: RoundStats::default(),
            bytes_by_channel: Vec::new(),
            rates: ChannelRates::new(Instant::now()),
        }
    }

    /// Begins round `round` with `pending` pages to be sent.
    pub(crate) fn begin_round(&mut self, round: u32, pending: u64) {
        self.walk.begin_round(round, pending);
        self.out.sink.begin_round(pending);
        self.round_began = Instant::now();
        self.round_bytes = self.out.sink.bytes();
        self.out.progress.update(|status| {
            status.round = round;
            status.ram.iteration_count = round.into();
            status.ram.remaining = pending * PAGE_SIZE;
        });
        self.out.progress.happened(MigrationEvent::MigrationPass {
            pass: round,
            remaining: pending * PAGE_SIZE,
        });
    }

    /// Counts pages to the round that were left out before it began.
    pub(crate) fn count_left_out(&mut self, pages: PagesBySource) {
        self.walk.round_mut().pages_by_source += pages;
    }

    /// Sends what is pending, and keeps to the bandwidth limit. The guest runs and may tell meanwhile that pages are
    /// free. Returns the epoch that is open in the end.
    pub(crate) fn walk_while_it_runs<'t, 'l>(
        &mut self,
        mut epoch: Epoch<'t, 'l>,
        plan: RoundPlan,
    ) -> Result<Epoch<'t, 'l>, MigrationError> {
        let RoundPlan {
            outlook, mut early, ..
        } = plan;
        self.out.keeps_pace = true;
        self.out.elsewhere = Duration::ZERO;
        self.walk.begin(outlook, self.out.pacing.section_bytes());
        let began = Instant::now();
        let mut opened = began;
        let (mut done_at_sync, mut since_sync) = (0, 0);
        // What is pending in later rounds was in use just now. The guest's free pages say nothing about it.
        let first_round = self.walk.round().round == 1;
        let words = |since_sync| {
            let pages = plan
                .sync_pages
                .map(|pages| pages.saturating_sub(since_sync));
            pages.map_or(WORDS_A_STEP, |pages| (pages / 64).clamp(1, WORDS_A_STEP))
        };
        while self.step(&epoch.pass(), opened, words(since_sync))? {
            if self.out.progress.orders().is_start_wanted() {
                // What is left of the round comes after the guest.
                break;
            }
            let pass = epoch.pass();
            let free = || match first_round {
                true => outlook.free.unwrap_or(0).max(pass.guest().1),
                false => 0,
            };
            if early.is_due(self.walk.round().pages_sent, free) {
                let began = Instant::now();
                epoch.harvest_early()?;
                self.out.elsewhere += began.elapsed();
            }
            let done = self.walk.pages_looked_at() + self.walk.round().pages_hinted;
            since_sync = done - done_at_sync;
            let round = self.walk.round().round;
            if self.converging.sync_is_due(round)
                || plan.sync_pages.is_some_and(|pages| since_sync >= pages)
            {
                (done_at_sync, since_sync) = (done, 0);
                let (syncing, elsewhere) = (Instant::now(), self.out.elsewhere);
                let small;
                (epoch, small) = self.sync(epoch)?;
                if small {
                    break;
                }
                opened = Instant::now();
                // What was sent meanwhile is in it.
                self.out.elsewhere = elsewhere + syncing.elapsed();
                self.walk.epoch_opened(Outlook {
                    pending: epoch.pass().bitmap().count(),
                    pages_per_second: self.out.pacing.pages_per_second(),
                    ..outlook
                });
            }
        }
        let looking = began.elapsed().saturating_sub(self.out.elsewhere);
        self.out
            .estimate
            .looked_at(self.walk.pages_looked_at(), looking);
        self.flush(&epoch.pass())?;
        if first_round && self.out.sink.wants_late_discards() {
            self.await_late_hints(&epoch, opened, &plan)?;
        }
        Ok(epoch)
    }

    /// Lets a guest go on that is still telling what is free in the epoch, which was `opened`: what it hints now becomes a late discard,
    /// and a snapshot file smaller. A guest that has answered, or does not answer at all, is not waited for.
    fn await_late_hints(
        &mut self,
        epoch: &Epoch<'_, '_>,
        opened: Instant,
        plan: &RoundPlan,
    ) -> Result<(), MigrationError> {
        let hinted = || {
            let (phase, hinted) = epoch.pass().guest();
            (phase == HintPhase::Running).then_some(hinted)
        };
        let began = Instant::now();
        let took = self.round_began.elapsed();
        let (mut seen, mut last_hint) = (hinted().unwrap_or(0), began);
        let most = plan.wait_for_hints.unwrap_or_else(|| {
            let rate = seen as f64 / opened.elapsed().as_secs_f64();
            let free = plan.outlook.free.unwrap_or(0).saturating_sub(seen);
            match rate * took.as_secs_f64() >= free as f64 {
                true => took,
                false => Duration::ZERO,
            }
        });
        while let Some(now) = hinted()
            && began.elapsed() < most
            && last_hint.elapsed() < LONGEST_SILENCE
        {
            if now > seen {
                (seen, last_hint) = (now, Instant::now());
            }
            self.out.check()?;
            std::thread::sleep(NAP);
        }
        self.walk.round_mut().held_back_ms += milliseconds(began.elapsed());
        Ok(())
    }

    /// Sends all that is pending, as fast as it goes: the guest stands still.
    pub(crate) fn walk_the_rest(&mut self, pass: &Pass<'_>) -> Result<(), MigrationError> {
        self.out.keeps_pace = false;
        self.walk.begin_rest();
        let opened = Instant::now();
        while self.step(pass, opened, WORDS_A_STEP)? {}
        self.flush(pass)
    }

    /// Does one step of the walk. False if it was the last.
    fn step(
        &mut self,
        pass: &Pass<'_>,
        opened: Instant,
        words: u64,
    ) -> Result<bool, MigrationError> {
        if self.out.pause()? {
            return Ok(true);
        }
        let section_bytes = match self.out.keeps_pace {
            true => self.out.pacing.section_bytes(),
            false => MAX_SECTION_PAGES * PAGE_SIZE,
        };
        let moment = Moment {
            now: opened.elapsed(),
            pages_per_second: self.out.pacing.pages_per_second(),
            section_bytes,
            words,
        };
        match self.walk.step(pass, moment)? {
            Step::Send(work) => {
                self.out.send(work)?;
                self.unchecked_steps = 0;
                self.report();
                self.out.keep_pace();
            }
            Step::Wait => {
                let began = Instant::now();
                self.out.check()?;
                std::thread::sleep(NAP);
                let waited = began.elapsed();
                self.walk.round_mut().held_back_ms += milliseconds(waited);
                self.out.elsewhere += waited;
            }
            Step::Look => {
                self.unchecked_steps += 1;
                if self.unchecked_steps >= STEPS_UNCHECKED {
                    self.unchecked_steps = 0;
                    self.out.check()?;
                }
            }
            Step::End => return Ok(false),
        }
        Ok(true)
    }

    /// Harvests in the middle of the round. Returns with the next epoch whether the guest can be stopped, so that the round ends.
    fn sync<'t, 'l>(
        &mut self,
        epoch: Epoch<'t, 'l>,
    ) -> Result<(Epoch<'t, 'l>, bool), MigrationError> {
        let (epoch, harvest) = epoch.sync(self)?;
        let pending = epoch.pass().bitmap().count();
        self.tell_harvest(&harvest, pending, true);
        let small = self.harvested(&harvest, pending);
        self.synced += harvest;
        self.walk.round_mut().syncs += 1;
        Ok((epoch, small))
    }

    /// Tells those who watch the migration of a `harvest` after which `pending` pages are to be sent.
    pub(crate) fn tell_harvest(&mut self, harvest: &Harvest, pending: u64, background: bool) {
        let before = std::mem::replace(&mut self.harvested_at, Instant::now());
        let rate = harvest.dirty as f64 / (self.harvested_at - before).as_secs_f64();
        let mut count = 0;
        self.out.progress.update(|status| {
            status.ram.dirty_pages_rate = rate as u64;
            status.ram.dirty_sync_count += 1;
            count = status.ram.dirty_sync_count;
        });
        self.out.progress.happened(MigrationEvent::DirtySync {
            count,
            background,
            dirty_pages: harvest.dirty,
            remaining: pending * PAGE_SIZE,
        });
    }

    /// Decides how the migration goes on after `harvest`, when `pending` pages are to be sent. Returns whether the guest is to be
    /// stopped.
    pub(crate) fn harvested(&mut self, harvest: &Harvest, pending: u64) -> bool {
        self.converging.harvested(&Harvested {
            dirty_pages: harvest.dirty,
            page_bytes: self.out.pacing.page_bytes(),
            sent: self.out.sink.bytes(),
            pending,
            downtime: self.out.expected_downtime(pending),
        })
    }

    /// Sends what has been gathered, the last of the round.
    pub(crate) fn flush(&mut self, pass: &Pass<'_>) -> Result<(), MigrationError> {
        self.out.begin_last_sections();
        self.send_gathered(pass)?;
        self.report();
        Ok(())
    }

    fn send_gathered(&mut self, pass: &Pass<'_>) -> Result<(), MigrationError> {
        while let Some(work) = self.walk.flush(pass)? {
            self.out.send(work)?;
        }
        Ok(())
    }

    /// Ends the round: the destination is told, and answers when [`Outgoing::round_received`] is called.
    pub(crate) fn end_round(&mut self) -> Result<(), MigrationError> {
        let round = self.walk.round().round;
        self.out.end_round(round)?;
        self.walk.round_mut().bytes = self.out.sink.bytes() - self.round_bytes;
        Ok(())
    }

    /// The numbers of the round that has ended, with what its `harvest` brought; that too is made whole here with what
    /// harvests in the middle of the round brought.
    pub(crate) fn take_round(&mut self, harvest: &mut Harvest) -> RoundStats {
        *harvest += std::mem::take(&mut self.synced);
        let mut round = std::mem::take(self.walk.round_mut());
        round.ms = milliseconds(self.round_began.elapsed());
        round.dirty_harvested = harvest.dirty;
        round.pages_hinted_too_late = harvest.too_late.sum();
        round.too_late_by_source = harvest.too_late;
        add(&mut self.totals, &round);
        round
    }

    /// The sums of all rounds that have ended.
    pub(crate) fn totals(&self) -> &RoundStats {
        &self.totals
    }

    /// What the destination is to compare with what it received; the bytes are counted as they are sent.
    pub(crate) fn stream_totals(&self) -> Totals {
        self.walk
            .stream_totals(self.totals.round, self.totals.pages_sent)
    }

    /// What compression has done so far; none without compression.
    pub(crate) fn compression(&self) -> Option<CompressionStatus> {
        let compression = self.out.sink.compression();
        let carried = self.out.sink.carried();
        (compression != Compression::None).then(|| CompressionStatus {
            method: compression.name().into(),
            zstd_level: compression.level().map(ZstdLevel::get),
            pages: carried.compressed_pages,
            compressed_size: carried.compressed_bytes,
            compression_rate: carried.compression_rate(),
        })
    }

    /// Brings the status up to date.
    fn report(&mut self) {
        let compression = self.compression();
        self.bytes_by_channel.clear();
        (self.out.sink).bytes_by_channel(&mut self.bytes_by_channel);
        let by_channel = &self.bytes_by_channel;
        let rates = self.rates.update(Instant::now(), by_channel);
        let (round, totals) = (self.walk.round(), &self.totals);
        let done = round.pages_sent + round.pages_zero + round.pages_hinted;
        let measured = self.out.pacing.measured();
        let to_be_sent = round.pending_before + self.synced.dirty;
        let remaining = to_be_sent.saturating_sub(done);
        let expected = self.out.expected_downtime(remaining);
        self.out.progress.update(|status| {
            status.ram.transferred = self.out.sink.bytes();
            match self.out.keeps_pace {
                true => status.ram.precopy_bytes = status.ram.transferred,
                false => {
                    let before = status.ram.precopy_bytes;
                    status.ram.downtime_bytes = status.ram.transferred.saturating_sub(before);
                }
            }
            status.ram.multifd_bytes = by_channel.iter().sum();
            status.ram.bytes_by_channel.clone_from(by_channel);
            status.ram.mbps_by_channel.clear();
            status.ram.mbps_by_channel.extend(rates);
            status.ram.remaining = remaining * PAGE_SIZE;
            status.ram.duplicate = totals.pages_zero + round.pages_zero;
            status.ram.normal = totals.pages_sent + round.pages_sent;
            status.ram.normal_bytes = status.ram.normal * PAGE_SIZE;
            status.ram.mbps = measured.map(|bytes| bytes * 8.0 / 1e6);
            let page_bytes = self.out.pacing.page_bytes();
            status.ram.pages_per_second = measured.map(|bytes| (bytes / page_bytes) as u64);
            status.compression = compression;
            status.expected_downtime = expected.map(|expected| expected.sum().as_millis() as u64);
            status.hints.pages_by_source = totals.pages_by_source;
            status.hints.pages_by_source += round.pages_by_source;
            status.hints.skipped = totals.pages_hinted + round.pages_hinted;
            status.hints.discarded = totals.pages_discarded + round.pages_discarded;
            status.hints.held_back = (totals.held_back_ms + round.held_back_ms) as u64;
        });
    }
}

/// What a harvest brings back is sent again, and must not overtake what was sent before.
impl<S: Sink> Flush for Sender<'_, S> {
    type Error = MigrationError;

    fn flush(&mut self, pass: &Pass<'_>) -> Result<(), MigrationError> {
        self.send_gathered(pass)?;
        self.out.drain()
    }

    fn wants_late_discards(&self) -> bool {
        self.out.sink.wants_late_discards()
    }

    fn discard_late(
        &mut self,
        pass: &Pass<'_>,
        index: usize,
        told: HintBits,
    ) -> Result<(), MigrationError> {
        if self.walk.discard_late(index, told) {
            self.send_gathered(pass)?;
        }
        Ok(())
    }

    fn too_late(&mut self, index: usize, told: HintBits) {
        self.walk.note_late(index, told);
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
    totals.syncs += round.syncs;
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
