// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The threads that write a snapshot's pages. Whichever is free takes the next ones, so whoever gives them pages makes sure that no
//! older version of a page is still on its way ([`Writers::wait_for`]).

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use spec::file::{Places, page_checksum};

use super::error::SnapshotError;
use super::storage::Storage;
use crate::memory::page_buffer::PageBuffer;
use crate::panics::text_of;

/// How many buffers of 1 MiB wait for a writer at most.
const MOST_WAITING: usize = 4;

/// Pages on their way to the file.
#[derive(Debug)]
pub(super) struct Job {
    pages: PageBuffer,
    /// The first slot of each of its runs, and how many pages follow there.
    slots: Vec<(u64, u64)>,
    /// The slots from the lowest to behind the highest.
    hull: (u64, u64),
}

impl Job {
    /// The pages of `pages`, whose runs have these `slots`.
    pub(super) fn new(pages: PageBuffer, slots: Vec<(u64, u64)>) -> Self {
        let first = slots.iter().map(|(slot, _)| *slot).min();
        let end = slots.iter().map(|(slot, count)| slot + count).max();
        Self {
            pages,
            slots,
            hull: (first.unwrap_or(0), end.unwrap_or(0)),
        }
    }
}

/// Pages that are in the file.
#[derive(Debug)]
pub(super) struct Written {
    /// As in [`Job`].
    pub(super) slots: Vec<(u64, u64)>,
    /// Of each page.
    pub(super) checksums: Vec<u32>,
    /// The buffer, empty.
    pub(super) pages: PageBuffer,
}

/// The writers of a snapshot.
pub(super) struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// When a wait for them ends in an error.
    deadline: Option<Instant>,
    /// The disk has let a deadline pass. It may never let go of a thread.
    stalled: bool,
}

struct Shared {
    storage: Arc<dyn Storage>,
    places: Places,
    state: Mutex<State>,
    /// There is something to write, or will never be.
    given: Condvar,
    /// Something was written, or could not be.
    done: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// The hulls of what each writer writes now.
    under_way: Vec<Option<(u64, u64)>>,
    /// In the order in which it was written.
    written: Vec<Written>,
    /// Bytes that each writer has written.
    bytes: Vec<u64>,
    /// Bytes on their way.
    waiting_bytes: u64,
    failure: Option<SnapshotError>,
    has_failed: bool,
    closed: bool,
}

impl Writers {
    /// `count` threads that write to `storage`, whose pages are at these `places`. With 0, whoever gives pages writes them.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] if a thread cannot be started.
    pub(super) fn start(
        count: u32,
        storage: Arc<dyn Storage>,
        places: Places,
    ) -> Result<Self, SnapshotError> {
        let state = State {
            under_way: vec![None; count as usize],
            bytes: vec![0; count.max(1) as usize],
            ..State::default()
        };
        let mut writers = Self {
            shared: Arc::new(Shared {
                storage,
                places,
                state: Mutex::new(state),
                given: Condvar::new(),
                done: Condvar::new(),
            }),
            threads: Vec::new(),
            deadline: None,
            stalled: false,
        };
        for number in 0..count as usize {
            let shared = Arc::clone(&writers.shared);
            let thread = thread::Builder::new()
                .name(format!("writer {number}"))
                .spawn(move || shared.run(number));
            let failed = SnapshotError::io("start a thread for", writers.shared.storage.path());
            writers.threads.push(thread.map_err(failed)?);
        }
        Ok(writers)
    }

    /// How many threads there are.
    pub(super) fn count(&self) -> u32 {
        self.threads.len() as u32
    }

    /// From now on no wait for the disk goes on after `deadline`.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Takes `job`. Waits until there is room for it.
    pub(super) fn put(&mut self, job: Job) -> Result<(), SnapshotError> {
        if self.threads.is_empty() {
            let written = self.shared.write(job)?;
            let mut state = self.shared.state.lock();
            state.bytes[0] += bytes(&written.slots);
            state.written.push(written);
            return Ok(());
        }
        self.wait_until(|state| state.waiting.len() < MOST_WAITING)?;
        let mut state = self.shared.state.lock();
        state.waiting_bytes += bytes(&job.slots);
        state.waiting.push_back(job);
        drop(state);
        self.shared.given.notify_one();
        Ok(())
    }

    /// Waits until no page in the slots from `first` to before `end` is on its way.
    pub(super) fn wait_for(&mut self, first: u64, end: u64) -> Result<(), SnapshotError> {
        let is_apart = |hull: &(u64, u64)| hull.1 <= first || end <= hull.0;
        self.wait_until(|state| {
            let waiting = state.waiting.iter().map(|job| &job.hull);
            waiting
                .chain(state.under_way.iter().flatten())
                .all(is_apart)
        })
    }

    /// Waits until everything is written.
    pub(super) fn drain(&mut self) -> Result<(), SnapshotError> {
        self.wait_until(State::is_idle)
    }

    /// Whether nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.shared.state.lock().is_idle()
    }

    /// What was written since the last call, in its order.
    pub(super) fn take_written(&mut self) -> Vec<Written> {
        std::mem::take(&mut self.shared.state.lock().written)
    }

    /// Bytes of pages that each writer has written.
    pub(super) fn bytes_by_writer(&self) -> Vec<u64> {
        self.shared.state.lock().bytes.clone()
    }

    /// Bytes of pages that are on their way.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.shared.state.lock().waiting_bytes
    }

    /// An error if a writer has failed.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        self.shared.check(&mut self.shared.state.lock())
    }

    fn wait_until(&mut self, is_so: impl Fn(&State) -> bool) -> Result<(), SnapshotError> {
        let mut state = self.shared.state.lock();
        loop {
            self.shared.check(&mut state)?;
            if is_so(&state) {
                return Ok(());
            }
            match self.deadline {
                None => self.shared.done.wait(&mut state),
                Some(deadline) => {
                    let waited = self.shared.done.wait_until(&mut state, deadline);
                    if waited.timed_out() && !is_so(&state) {
                        drop(state);
                        self.stalled = true;
                        let why = "it took too long while the guest was stopped";
                        let error = io::Error::new(io::ErrorKind::TimedOut, why);
                        let path = self.shared.storage.path();
                        return Err(SnapshotError::io("write", path)(error));
                    }
                }
            }
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.given.notify_all();
        if self.stalled {
            // They end when the disk lets go of them. The storage is dropped by the last one.
            return;
        }
        for thread in self.threads.drain(..) {
            // A panic in it has been told as its failure.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What writer `number` does.
    fn run(&self, number: usize) {
        while let Some(job) = self.take(number) {
            let written = catch_unwind(AssertUnwindSafe(|| self.write(job)));
            let written =
                written.unwrap_or_else(|panic| Err(SnapshotError::Panicked(text_of(&*panic))));
            let mut state = self.state.lock();
            state.under_way[number] = None;
            match written {
                Ok(written) => {
                    let bytes = bytes(&written.slots);
                    state.bytes[number] += bytes;
                    state.waiting_bytes -= bytes;
                    state.written.push(written);
                }
                Err(error) if !state.has_failed => {
                    state.has_failed = true;
                    state.failure = Some(error);
                }
                Err(_) => {}
            }
            drop(state);
            self.done.notify_all();
        }
    }

    /// What writer `number` has to write next; `None` when there will be nothing more.
    fn take(&self, number: usize) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.closed || state.has_failed {
                return None;
            }
            if let Some(job) = state.waiting.pop_front() {
                state.under_way[number] = Some(job.hull);
                return Some(job);
            }
            self.given.wait(&mut state);
        }
    }

    fn write(&self, job: Job) -> Result<Written, SnapshotError> {
        let Job {
            mut pages, slots, ..
        } = job;
        let (of_pages, _) = pages.content().as_chunks();
        let checksums = of_pages.iter().map(page_checksum).collect();
        let mut content = pages.content();
        for (slot, count) in &slots {
            let (of_run, rest) = content.split_at((count * spec::PAGE_SIZE) as usize);
            let written = self.storage.write_pages(of_run, self.places.page(*slot));
            written.map_err(SnapshotError::io("write", self.storage.path()))?;
            content = rest;
        }
        pages.clear();
        Ok(Written {
            slots,
            checksums,
            pages,
        })
    }

    fn check(&self, state: &mut State) -> Result<(), SnapshotError> {
        match state.failure.take() {
            Some(error) => Err(error),
            None if state.has_failed => {
                let before = io::Error::other("a writer has failed before");
                Err(SnapshotError::io("write", self.storage.path())(before))
            }
            None => Ok(()),
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way.iter().all(Option::is_none)
    }
}

fn bytes(slots: &[(u64, u64)]) -> u64 {
    slots.iter().map(|(_, count)| count).sum::<u64>() * spec::PAGE_SIZE
}

impl fmt::Debug for Writers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writers")
            .field("threads", &self.threads.len())
            .field("stalled", &self.stalled)
            .finish_non_exhaustive()
    }
}
