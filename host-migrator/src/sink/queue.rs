// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages that wait for a channel. Whichever channel is free takes the next, so that none is idle while another has work.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::SinkError;
use super::pages_section::PagesSection;
use crate::memory::page_buffer::PageBuffer;

/// How long a wait lasts at most before the caller looks at the rest of the world.
const TICK: Duration = Duration::from_millis(10);

/// A queue of full buffers on their way to the channels, and of empty ones on their way back.
#[derive(Debug)]
pub(super) struct Queue {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<PageBuffer>,
    spare: Vec<PageBuffer>,
    /// Buffers that channels are sending.
    under_way: usize,
    /// Bytes on the wire of the buffers that wait or are being sent, if they were not compressed.
    bytes: u64,
    /// Why the first channel failed. It is told once.
    failure: Option<SinkError>,
    has_failed: bool,
    closed: bool,
}

/// What a try to do something came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// It is done.
    Done,
    /// It has to be tried again.
    NotYet,
}

impl Queue {
    /// A queue in which `most` buffers may wait.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Takes the pages of `full` and leaves an empty buffer there. Waits a moment for room.
    pub(super) fn put(&self, full: &mut PageBuffer) -> Result<Tried, SinkError> {
        let mut state = self.state.lock();
        if state.waiting.len() >= self.most && !state.has_failed {
            self.changed.wait_for(&mut state, TICK);
        }
        state.check()?;
        if state.waiting.len() >= self.most {
            return Ok(Tried::NotYet);
        }
        let empty = state.spare.pop().unwrap_or_default();
        state.bytes += plain_bytes(full);
        state.waiting.push_back(std::mem::replace(full, empty));
        drop(state);
        self.changed.notify_all();
        Ok(Tried::Done)
    }

    /// Waits a moment until the channels have sent everything.
    pub(super) fn empty(&self) -> Result<Tried, SinkError> {
        let mut state = self.state.lock();
        if !state.is_empty() && !state.has_failed {
            self.changed.wait_for(&mut state, TICK);
        }
        state.check()?;
        Ok(if state.is_empty() {
            Tried::Done
        } else {
            Tried::NotYet
        })
    }

    /// Bytes on the wire of all that waits or is being sent, if it were not compressed.
    pub(super) fn plain_bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    /// An error if a channel has failed.
    pub(super) fn check(&self) -> Result<(), SinkError> {
        self.state.lock().check()
    }

    /// A channel waits for its next pages; `None` when there will be no more.
    pub(super) fn take(&self) -> Option<PageBuffer> {
        let mut state = self.state.lock();
        loop {
            if state.closed || state.has_failed {
                return None;
            }
            if let Some(next) = state.waiting.pop_front() {
                state.under_way += 1;
                return Some(next);
            }
            self.changed.wait(&mut state);
        }
    }

    /// A channel has sent `pages`.
    pub(super) fn sent(&self, mut pages: PageBuffer) {
        let bytes = plain_bytes(&pages);
        pages.clear();
        let mut state = self.state.lock();
        state.under_way -= 1;
        state.bytes -= bytes;
        state.spare.push(pages);
        drop(state);
        self.changed.notify_all();
    }

    /// A channel has failed. The first failure counts.
    pub(super) fn fail(&self, error: SinkError) {
        let mut state = self.state.lock();
        if !state.has_failed {
            state.has_failed = true;
            state.failure = Some(error);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// There will be no more pages.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

fn plain_bytes(pages: &PageBuffer) -> u64 {
    PagesSection::bytes(pages.runs().len(), pages.pages())
}

impl State {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.under_way == 0
    }

    fn check(&mut self) -> Result<(), SinkError> {
        match self.failure.take() {
            Some(error) => Err(error),
            None if self.has_failed => Err(SinkError::ChannelsEnded),
            None => Ok(()),
        }
    }
}
