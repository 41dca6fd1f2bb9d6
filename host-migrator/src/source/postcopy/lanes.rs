// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lanes of the source. The first answers requests; the others send what nobody has asked for. Each has a thread.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use spec::PageRange;
use spec::stream::{MAX_SECTION_RUNS, SectionKind, runs};

use super::joining::JoinedLanes;
use super::promise::{NotPromised, Promise};
use super::window::Window;
use crate::compression::Compression;
use crate::memory::bitmap::Cursor;
use crate::memory::error::RamError;
use crate::pace::Pace;
use crate::panics::text_of;
use crate::sink::channels::Introduced;
use crate::sink::pages_section::PagesSection;
use crate::walk::batch::Batch;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Closer, Heartbeats, SectionError, StopFlag};

/// Pages of a section that nobody waits for. A page that is asked for meanwhile waits for a processor as long as one takes.
const MOST_PAGES: u64 = 64;
/// How often a lane that has nothing to send looks at the destination.
const GLANCE: Duration = Duration::from_millis(20);
/// How long a lane gives way to a request, and how often at most.
const YIELD: Duration = Duration::from_micros(20);
const YIELDS: u32 = 50;
/// No burst makes up for more time than this.
const LARGEST_CREDIT: Duration = Duration::from_millis(20);

/// Why a lane ends before all is at the destination.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error(transparent)]
    Section(#[from] SectionError),
    #[error("connection to the destination: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    NotPromised(#[from] NotPromised),
    #[error(transparent)]
    Ram(#[from] RamError),
    #[error("a bug: its thread panicked: {0}")]
    Panicked(String),
}

/// What the lanes share with the thread that waits for their end.
pub(super) struct Shared {
    pub(super) promise: Promise,
    compression: Compression,
    /// Bytes a second on each lane for what nobody has asked for.
    pub(super) pace: Option<u64>,
    /// Requests that are being answered.
    busy: AtomicUsize,
    pub(super) requests: AtomicU64,
    pub(super) pages: AtomicU64,
    pub(super) bytes: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The guest was handed over: what nobody has asked for may be sent.
    pushes: bool,
    end: Option<End>,
}

/// How lanes end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is missing at the destination.
    Complete,
    /// One of them has failed, for this reason.
    Broken(String),
}

impl Shared {
    pub(super) fn new(promise: Promise, compression: Compression, pace: Option<u64>) -> Self {
        Self {
            promise,
            compression,
            pace,
            busy: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// From now on pages are sent that nobody has asked for.
    pub(super) fn push(&self) {
        self.state.lock().pushes = true;
        self.changed.notify_all();
    }

    /// Waits at most `time` for the end of the lanes.
    pub(super) fn end_within(&self, time: Duration) -> Option<End> {
        let mut state = self.state.lock();
        let waits = |state: &mut State| state.end.is_none();
        self.changed.wait_while_for(&mut state, waits, time);
        state.end.clone()
    }

    /// Other lanes take the place of those that have ended.
    fn begin(&self) {
        self.state.lock().end = None;
    }

    fn end(&self, end: End) {
        let mut state = self.state.lock();
        if state.end.is_none() {
            state.end = Some(end);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until pages may be sent that nobody has asked for. False if the lanes end before.
    fn may_push(&self) -> bool {
        let mut state = self.state.lock();
        let waits = |state: &mut State| !state.pushes && state.end.is_none();
        self.changed.wait_while(&mut state, waits);
        state.end.is_none()
    }
}

/// Lanes in use. They end when it is dropped.
pub(super) struct Lanes {
    shared: Arc<Shared>,
    stop: StopFlag,
    closers: Vec<Closer>,
    threads: Vec<JoinHandle<()>>,
    _heartbeats: Heartbeats,
}

impl Lanes {
    /// Begins to serve the lanes that have `joined`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn start(joined: JoinedLanes, shared: &Arc<Shared>) -> io::Result<Self> {
        let outs = joined.lanes.iter().map(|lane| lane.out.clone());
        let mut lanes = Self {
            shared: Arc::clone(shared),
            stop: joined.stop,
            closers: Vec::new(),
            threads: Vec::new(),
            _heartbeats: Heartbeats::start(outs.collect())?,
        };
        shared.begin();
        for (number, introduced) in joined.lanes.into_iter().enumerate() {
            let Introduced {
                connection,
                peer,
                out,
                ..
            } = introduced;
            lanes.closers.push(connection);
            let shared = Arc::clone(shared);
            let section = PagesSection::compressed(shared.compression)?;
            let lane = Lane {
                peer,
                out,
                section,
                batch: Batch::new(),
                zeros: Vec::new(),
                counted: 0,
            };
            let thread = thread::Builder::new().name(format!("lane {number}"));
            let thread = thread.spawn(move || lane.serve(number, &shared))?;
            lanes.threads.push(thread);
        }
        Ok(lanes)
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.shared.end(End::Broken("the lanes were ended".into()));
        self.stop.raise();
        self.closers.iter().for_each(Closer::shut);
        for thread in self.threads.drain(..) {
            // Its panics break the lane.
            let _ = thread.join();
        }
    }
}

/// A lane, in its thread.
struct Lane {
    peer: SectionReader,
    out: SectionWriter,
    section: PagesSection,
    batch: Batch,
    zeros: Vec<PageRange>,
    /// Bytes that are counted already.
    counted: u64,
}

impl Lane {
    fn serve(mut self, number: usize, shared: &Shared) {
        let served = catch_unwind(AssertUnwindSafe(|| match number {
            0 => self.answer(shared),
            _ => self.push(shared),
        }));
        let served = served.unwrap_or_else(|panic| Err(LaneError::Panicked(text_of(&*panic))));
        if let Err(error) = served {
            if let LaneError::NotPromised(refused) = &error {
                self.out.abort(&refused.to_string());
            }
            shared.end(End::Broken(format!("lane {number}: {error}")));
        }
    }

    /// Answers requests until nothing is missing.
    fn answer(&mut self, shared: &Shared) -> Result<(), LaneError> {
        let mut table = Vec::new();
        loop {
            let header = self.peer.header()?;
            match header.kind {
                SectionKind::Request => {
                    self.peer.payload_into(&header, &mut table)?;
                    shared.busy.fetch_add(1, Ordering::AcqRel);
                    let answered = self.answer_runs(shared, &table);
                    shared.busy.fetch_sub(1, Ordering::AcqRel);
                    answered?;
                }
                SectionKind::Complete => {
                    shared.end(End::Complete);
                    return Ok(());
                }
                found => {
                    let expected = "a request";
                    return Err(SectionError::Unexpected { found, expected }.into());
                }
            }
        }
    }

    fn answer_runs(&mut self, shared: &Shared, table: &[u8]) -> Result<(), LaneError> {
        for run in runs(SectionKind::Request, table) {
            let run = run.map_err(SectionError::from)?;
            shared.requests.fetch_add(run.count(), Ordering::Relaxed);
            for claimed in shared.promise.claim_asked(run)? {
                if self.batch.space() < claimed.count() {
                    self.send(shared)?;
                }
                self.zeros
                    .extend(shared.promise.copy(claimed, &mut self.batch)?);
            }
        }
        self.send(shared)?;
        Ok(())
    }

    /// Sends what nobody has asked for, until the lanes end.
    fn push(&mut self, shared: &Shared) -> Result<(), LaneError> {
        let mut cursor = Cursor::from_word(0);
        let mut pace = Pace::new(LARGEST_CREDIT);
        let mut window = Window::new();
        self.batch.set_most(MOST_PAGES);
        while shared.may_push() {
            self.hear(&mut window)?;
            give_way(shared);
            let mut any = false;
            while self.batch.space() > 0 && self.zeros.len() < MAX_SECTION_RUNS / 2 {
                let Some(range) = shared.promise.claim_next(&mut cursor, self.batch.space()) else {
                    break;
                };
                any = true;
                self.zeros
                    .extend(shared.promise.copy(range, &mut self.batch)?);
            }
            if !any {
                // What is asked for again after a break is left to the first lane.
                shared.end_within(GLANCE);
                cursor = Cursor::from_word(0);
                continue;
            }
            let before = self.counted;
            let sections = self.send(shared)?;
            (0..sections).for_each(|_| window.sent(Instant::now()));
            if let Some(rate) = shared.pace {
                let sent = self.counted - before;
                let wait = pace.after(Instant::now(), sent, rate.max(1) as f64);
                shared.end_within(wait);
            }
        }
        Ok(())
    }

    /// Hears which sections are in memory, and that the destination is alive. Waits while there is no room for another one.
    fn hear(&mut self, window: &mut Window) -> Result<(), LaneError> {
        while !window.has_room() || self.peer.is_ready() {
            let Some(header) = self.peer.header_or_heartbeat()? else {
                continue;
            };
            if header.kind != SectionKind::Placed || !window.placed(Instant::now()) {
                let (found, expected) = (header.kind, "nothing");
                return Err(SectionError::Unexpected { found, expected }.into());
            }
        }
        Ok(self.peer.check_heard()?)
    }

    /// Sends what was copied, and which pages are zero. Returns in how many sections.
    fn send(&mut self, shared: &Shared) -> Result<usize, LaneError> {
        let mut sections = 0;
        let pages = self.batch.pages();
        if pages > 0 {
            let copies = self.batch.copies();
            (self.section).pages(&mut self.out, copies.runs(), copies.content())?;
            self.batch.clear();
            sections += 1;
            shared.pages.fetch_add(pages, Ordering::Relaxed);
        }
        for zeros in self.zeros.chunks(MAX_SECTION_RUNS) {
            (self.section).runs(&mut self.out, SectionKind::Zero, zeros)?;
            sections += 1;
        }
        self.zeros.clear();
        let bytes = self.out.bytes();
        let new = bytes - std::mem::replace(&mut self.counted, bytes);
        shared.bytes.fetch_add(new, Ordering::Relaxed);
        Ok(sections)
    }
}

/// Lets requests be answered first.
fn give_way(shared: &Shared) {
    for _ in 0..YIELDS {
        if shared.busy.load(Ordering::Acquire) == 0 {
            return;
        }
        thread::sleep(YIELD);
    }
}
