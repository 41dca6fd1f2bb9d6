// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channels of an arriving guest: each is read by a thread of its own, which places what it brings.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use parking_lot::{Condvar, Mutex};
use spec::stream::SectionKind;

use super::error::ReceiveError;
use super::joining::Joined;
use super::placing::Placer;
use super::report::unexpected;
use crate::compression::Unpacker;
use crate::panics::text_of;
use crate::wire::sections::SectionReader;
use crate::wire::{Closer, SectionError, StopFlag};

/// What the threads of the channels share with the one that reads the control connection.
#[derive(Debug)]
pub(super) struct Shared {
    stop: StopFlag,
    /// The round whose pages may come.
    round: AtomicU32,
    /// Everything has been sent, and the channels are being closed.
    closing: AtomicBool,
    counts: Vec<Counts>,
    /// Held by the one that places pages.
    turn: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

/// What has arrived on a channel.
#[derive(Debug, Default)]
struct Counts {
    pages: AtomicU64,
    bytes: AtomicU64,
    /// Bytes up to the last drain, itself included.
    drained_at: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Drains that have arrived on each channel.
    drains: Vec<u64>,
    /// Why the first channel failed.
    failure: Option<ReceiveError>,
}

impl Shared {
    /// For `channels` channels. A failure of one ends the waits of all that have `stop`.
    pub(super) fn new(channels: usize, stop: StopFlag) -> Self {
        Self {
            stop,
            round: AtomicU32::new(1),
            closing: AtomicBool::new(false),
            counts: (0..channels).map(|_| Counts::default()).collect(),
            turn: Mutex::default(),
            state: Mutex::new(State {
                drains: vec![0; channels],
                failure: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// `placer`, for several threads.
    pub(super) fn placer<'a>(&'a self, placer: Placer<'a>) -> Placer<'a> {
        placer.in_turns(&self.turn)
    }

    /// The pages of `round` may come.
    pub(super) fn begin_round(&self, round: u32) {
        self.round.store(round, Ordering::Release);
    }

    /// Waits until every channel has been drained `times` in all.
    ///
    /// # Errors
    /// If a channel has failed; [`Shared::take_failure`] says why.
    pub(super) fn wait_for_drain(&self, times: u64) -> Result<(), SectionError> {
        let mut state = self.state.lock();
        loop {
            if state.failure.is_some() {
                return Err(StopFlag::interruption().into());
            }
            if state.drains.iter().all(|&drains| drains >= times) {
                return Ok(());
            }
            self.changed.wait(&mut state);
        }
    }

    /// Why a channel failed, if one has. From now on the control connection can be waited for again.
    pub(super) fn take_failure(&self) -> Option<ReceiveError> {
        let failure = self.state.lock().failure.take();
        if failure.is_some() {
            self.stop.go_on();
        }
        failure
    }

    /// Pages that have arrived on all channels.
    pub(super) fn pages(&self) -> u64 {
        self.sum(|counts| &counts.pages)
    }

    /// Bytes that have arrived on all channels.
    pub(super) fn bytes(&self) -> u64 {
        self.sum(|counts| &counts.bytes)
    }

    /// Bytes that have arrived on all channels up to their last drains.
    pub(super) fn drained_bytes(&self) -> u64 {
        self.sum(|counts| &counts.drained_at)
    }

    fn sum(&self, count: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        let counts = self.counts.iter();
        counts.map(|of| count(of).load(Ordering::Relaxed)).sum()
    }

    fn drained(&self, channel: usize, bytes: u64) {
        self.counts[channel]
            .drained_at
            .store(bytes, Ordering::Relaxed);
        self.state.lock().drains[channel] += 1;
        self.changed.notify_all();
    }

    fn fail(&self, error: ReceiveError) {
        self.state.lock().failure.get_or_insert(error);
        self.changed.notify_all();
        self.stop.interrupt();
    }
}

/// Channels that are being read. They are closed when it is dropped.
pub(super) struct Channels<'scope> {
    shared: &'scope Shared,
    reading: Vec<(Closer, ScopedJoinHandle<'scope, ()>)>,
}

impl<'scope> Channels<'scope> {
    /// Begins to read the channels that have `joined`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        joined: Vec<Joined>,
        placer: Placer<'scope>,
        shared: &'scope Shared,
    ) -> Result<Self, ReceiveError> {
        let mut channels = Self {
            shared,
            reading: Vec::with_capacity(joined.len()),
        };
        for (number, joined) in joined.into_iter().enumerate() {
            let closer = joined.connection;
            let mut channel = Channel {
                number,
                input: joined.input,
                placer,
                shared,
                payload: Vec::new(),
                unpacker: Unpacker::default(),
            };
            let thread = thread::Builder::new()
                .name(format!("channel {number}"))
                .spawn_scoped(scope, move || channel.run())
                .map_err(SectionError::from)?;
            channels.reading.push((closer, thread));
        }
        Ok(channels)
    }

    /// Closes the channels, on which everything has been sent. Nothing is placed afterwards.
    ///
    /// # Errors
    /// If a channel has failed before.
    pub(super) fn finish(mut self) -> Result<(), ReceiveError> {
        self.shared.closing.store(true, Ordering::Release);
        for (closer, thread) in self.reading.drain(..) {
            closer.shut();
            // Its panics are failures.
            let _ = thread.join();
        }
        self.shared.take_failure().map_or(Ok(()), Err)
    }
}

impl Drop for Channels<'_> {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        for (closer, _) in &self.reading {
            closer.shut();
        }
    }
}

/// The thread of a channel.
struct Channel<'a> {
    number: usize,
    input: SectionReader,
    placer: Placer<'a>,
    shared: &'a Shared,
    /// The section that is being received, at most [`SectionKind::max_length`] bytes.
    payload: Vec<u8>,
    unpacker: Unpacker,
}

impl Channel<'_> {
    fn run(&mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.read()))
            .unwrap_or_else(|panic| Err(ReceiveError::Panicked(text_of(&*panic))));
        if let Err(source) = result
            && !self.shared.closing.load(Ordering::Acquire)
        {
            self.shared.fail(ReceiveError::Channel {
                channel: self.number,
                source: Box::new(source),
            });
        }
    }

    fn read(&mut self) -> Result<(), ReceiveError> {
        let counts = &self.shared.counts[self.number];
        loop {
            let header = self.input.header()?;
            let round = self.shared.round.load(Ordering::Acquire);
            if header.round != round {
                return Err(ReceiveError::Round {
                    expected: round,
                    found: header.round,
                });
            }
            match header.kind {
                kind @ (SectionKind::Pages | SectionKind::CompressedPages) => {
                    self.input.payload_into(&header, &mut self.payload)?;
                    let pages = self.placer.pages(kind, &self.payload, &mut self.unpacker)?;
                    counts.pages.fetch_add(pages, Ordering::Relaxed);
                    counts.bytes.store(self.input.bytes(), Ordering::Relaxed);
                }
                SectionKind::Drain => {
                    self.input.payload(&header)?;
                    counts.bytes.store(self.input.bytes(), Ordering::Relaxed);
                    self.shared.drained(self.number, self.input.bytes());
                }
                found => return Err(unexpected(found, "pages or a drain").into()),
            }
        }
    }
}
