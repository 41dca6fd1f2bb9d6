// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Puts work into the sink at the bandwidth limit, and measures how long that takes.

use std::time::{Duration, Instant};

use spec::trace::Event;

use super::error::MigrationError;
use super::estimate::Estimate;
use super::pacing::Pacing;
use super::progress::Progress;
use crate::convergence::downtime::Downtime;
use crate::report::stats::ExpectedSteps;
use crate::report::trace::Trace;
use crate::sink::{Carried, Sink};
use crate::walk::Work;

/// How long the sender sleeps before it checks again for hints, the time and a cancel.
pub(crate) const NAP: Duration = Duration::from_millis(1);

/// A sink, and what was measured of it.
pub(crate) struct Outgoing<'a, S> {
    pub(crate) sink: &'a mut S,
    pub(crate) progress: &'a Progress,
    trace: &'a Trace,
    pub(crate) pacing: Pacing,
    pub(crate) estimate: Estimate,
    /// The bandwidth limit is kept to: the guest runs.
    pub(crate) keeps_pace: bool,
    /// Until when nothing is sent, at the limit.
    pause_ends: Option<Instant>,
    /// The version of the tuning that is in use.
    tuned: u64,
    /// Bytes, sent or on their way, that have had their time at the limit.
    paced: u64,
    /// Bytes and pages whose speed was measured.
    measured: (u64, Carried),
    /// Time in this walk that was not spent on looking for pages and at them.
    pub(crate) elsewhere: Duration,
    /// When the last sections of the round began to be sent, and the bytes sent before.
    last_sections: (Instant, u64),
}

impl<'a, S: Sink> Outgoing<'a, S> {
    pub(crate) fn new(
        sink: &'a mut S,
        progress: &'a Progress,
        pacing: Pacing,
        estimate: Estimate,
        trace: &'a Trace,
    ) -> Self {
        if sink.channels() > 1 {
            trace.record(Event::Channels(sink.channels().into()));
        }
        Self {
            paced: sink.bytes(),
            measured: (sink.bytes(), sink.carried()),
            sink,
            progress,
            trace,
            pacing,
            estimate,
            keeps_pace: true,
            pause_ends: None,
            tuned: 0,
            elsewhere: Duration::ZERO,
            last_sections: (Instant::now(), 0),
        }
    }

    /// Puts `work` into the sink.
    pub(crate) fn send(&mut self, work: Work<'_>) -> Result<(), MigrationError> {
        self.check()?;
        let began = Instant::now();
        match work {
            Work::Pages(copies) => {
                let pages = copies.pages();
                self.sink.take_pages(copies)?;
                self.trace.record(Event::PagesSent(pages));
            }
            Work::Zero(runs) => {
                self.sink.zero(runs)?;
                let sent = |run| self.trace.record(Event::ZeroSent(run));
                runs.iter().copied().for_each(sent);
            }
            Work::Discard(runs) => {
                self.sink.discard(runs)?;
                let sent = |run| self.trace.record(Event::DiscardSent(run));
                runs.iter().copied().for_each(sent);
            }
        }
        let took = began.elapsed();
        self.measure(took);
        self.elsewhere += took;
        Ok(())
    }

    /// Notes what was sent since the last call, in the time that the walk had to wait for it.
    fn measure(&mut self, took: Duration) {
        let (bytes, carried) = (self.sink.bytes(), self.sink.carried());
        let before = std::mem::replace(&mut self.measured, (bytes, carried));
        self.pacing.sent(bytes.saturating_sub(before.0), took);
        self.pacing.carried(carried.since(before.1));
    }

    /// Ends round `round`: the destination is told, and answers when [`Outgoing::round_received`] is called.
    pub(crate) fn end_round(&mut self, round: u32) -> Result<(), MigrationError> {
        self.sink.end_round(round)?;
        self.trace.record(Event::RoundSent(round.into()));
        Ok(())
    }

    /// The last sections of the round follow.
    pub(crate) fn begin_last_sections(&mut self) {
        self.last_sections = (Instant::now(), self.sink.bytes());
    }

    /// Waits until the round is in the destination's memory. What socket buffers still hold would
    /// otherwise be waited for while the guest is stopped, and make the connection look faster than it is.
    pub(crate) fn round_received(&mut self) -> Result<(), MigrationError> {
        let began = Instant::now();
        self.sink.barrier()?;
        self.note_drained();
        let waited = began.elapsed();
        self.measure(waited);
        let (sent_at, before) = self.last_sections;
        let way = sent_at.elapsed().saturating_sub(self.estimate.round_trip());
        self.pacing.tried(self.sink.bytes() - before, way);
        self.estimate.answered(waited);
        // The last sections are sent without the limit, to measure how fast they go.
        self.keep_pace();
        while self.pause()? {}
        Ok(())
    }

    /// Waits until everything that was sent is in the destination's memory, if something could overtake it.
    pub(crate) fn drain(&mut self) -> Result<(), MigrationError> {
        let began = Instant::now();
        self.sink.drain()?;
        self.note_drained();
        self.measure(began.elapsed());
        Ok(())
    }

    fn note_drained(&self) {
        if self.sink.channels() > 1 && self.sink.is_drained() {
            self.trace.record(Event::Drained);
        }
    }

    /// How long the guest would be stopped with `pending` pages to be sent.
    pub(crate) fn expected_downtime(&self, pending: u64) -> Option<Downtime> {
        self.estimate
            .downtime(pending, &self.pacing, self.sink.channels())
    }

    /// The parts of that time.
    pub(crate) fn expected_steps(&self, pending: u64) -> Option<ExpectedSteps> {
        self.estimate.steps(pending, &self.pacing)
    }

    /// Returns an error if the migration was cancelled, or the destination has given up.
    pub(crate) fn check(&mut self) -> Result<(), MigrationError> {
        if self.progress.is_cancelled() {
            return Err(MigrationError::Cancelled);
        }
        if let Some(tuning) = self.progress.tuning_after(&mut self.tuned) {
            self.pacing.set_limit(tuning.max_bandwidth);
            self.pause_ends = None;
        }
        Ok(self.sink.check()?)
    }

    /// Gives all that was sent since the last call its time at the bandwidth limit: [`Outgoing::pause`] waits for it.
    pub(crate) fn keep_pace(&mut self) {
        // What waits for a channel is expected to shrink as what was sent before; what it came to is counted later.
        let waiting = self.pacing.shrunk(self.sink.waiting_bytes());
        let bytes = (self.sink.bytes() + waiting).max(self.paced);
        let new = bytes - std::mem::replace(&mut self.paced, bytes);
        if self.keeps_pace {
            let now = Instant::now();
            self.pause_ends = self.pacing.pause(now, new).map(|pause| now + pause);
        }
    }

    /// Waits a moment, if what was sent has not had its time at the bandwidth limit. Returns whether it has waited.
    pub(crate) fn pause(&mut self) -> Result<bool, MigrationError> {
        let Some(end) = self.pause_ends.filter(|_| self.keeps_pace) else {
            return Ok(false);
        };
        let now = Instant::now();
        let left = end.saturating_duration_since(now);
        if left.is_zero() {
            self.pause_ends = None;
            return Ok(false);
        }
        self.check()?;
        std::thread::sleep(left.min(NAP * 10));
        self.elsewhere += now.elapsed();
        Ok(true)
    }
}
