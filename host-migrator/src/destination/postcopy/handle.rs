// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The handle of a VMM: how far it is, and how it goes on after a break.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spec::PageRange;
use spec::file::Side;
use spec::stream::Nonce;

use super::asking::{self, Asking, Way};
use super::file::{FileLane, SourceFile};
use super::lanes::Lanes;
use super::placing::Coming;
use super::status::{PostcopyEvent, PostcopyPhase, PostcopyStatus};
use crate::destination::error::ReceiveError;
use crate::destination::introduction::Shape;
use crate::destination::joining::{Joined, Joining};
use crate::destination::joins::{Joins, Session};
use crate::destination::waiting;
use crate::ownership::Ownership;
use crate::snapshot::HalfFile;
use crate::wire::{Listener, StopFlag};

/// How long all lanes together may take to join, from the first on.
const JOIN: Duration = Duration::from_secs(30);

/// How a guest is received that may be handed over before its memory.
pub struct PostcopyOptions {
    /// Threads that answer page faults.
    pub threads: NonZeroUsize,
    /// Called with the handle as soon as there is one, before the machine is loaded. Keep it until all memory is here.
    pub begun: Box<dyn FnOnce(Postcopy) + Send>,
    /// Called from any thread. It must not wait for the machine: who has it may wait for a page.
    pub told: Box<dyn Fn(PostcopyEvent) + Send + Sync>,
}

impl std::fmt::Debug for PostcopyOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostcopyOptions")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// The memory of a guest that was handed over before it. Clones are the same.
#[derive(Clone)]
pub struct Postcopy(Arc<Inner>);

/// What the handle and the threads of the lanes share.
struct Inner {
    /// What a stranger is told of the guest's memory.
    shape: Shape,
    /// The secret with which lanes join, and the number of the first.
    nonce: Nonce,
    first: u32,
    lanes: usize,
    coming: Arc<Coming>,
    asking: Arc<Asking>,
    state: Mutex<State>,
    told: Arc<dyn Fn(PostcopyEvent) + Send + Sync>,
}

struct State {
    phase: PostcopyPhase,
    /// Why the lanes have ended.
    broken: Option<String>,
    recoveries: u64,
    /// Those in use, or that have ended.
    lanes: Option<Feed>,
    /// The file of the source that has ended, if memory comes from there.
    file: Option<PathBuf>,
}

/// What brings pages.
enum Feed {
    Lanes(Lanes),
    File(FileLane),
}

impl Feed {
    /// Ends it, without waiting for that.
    fn shut(&self) {
        match self {
            Self::Lanes(lanes) => lanes.shut(),
            Self::File(file) => file.shut(),
        }
    }

    /// Ends it. Nothing is placed afterwards.
    fn end(self) {
        match self {
            Self::Lanes(lanes) => lanes.end(),
            Self::File(file) => file.end(),
        }
    }
}

impl std::fmt::Debug for Postcopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Postcopy").field(&self.status()).finish()
    }
}

/// The session of the lanes.
pub(super) struct LanesSession {
    pub(super) shape: Shape,
    pub(super) nonce: Nonce,
    pub(super) first: u32,
}

impl Postcopy {
    /// Reads `lanes`, which have joined, and places in `coming` what they bring.
    pub(super) fn new(
        session: LanesSession,
        mut lanes: Vec<Joined>,
        coming: Arc<Coming>,
        asking: Arc<Asking>,
        told: Arc<dyn Fn(PostcopyEvent) + Send + Sync>,
    ) -> Result<Self, ReceiveError> {
        let stop = StopFlag::default();
        for lane in &mut lanes {
            lane.input.set_stop(stop.clone());
            lane.out.set_stop(stop.clone());
        }
        let LanesSession {
            shape,
            nonce,
            first,
        } = session;
        let postcopy = Self(Arc::new(Inner {
            shape,
            nonce,
            first,
            lanes: lanes.len(),
            coming,
            asking,
            state: Mutex::new(State {
                phase: PostcopyPhase::Active,
                broken: None,
                recoveries: 0,
                lanes: None,
                file: None,
            }),
            told,
        }));
        postcopy.begin(lanes, stop)?;
        Ok(postcopy)
    }

    /// How far it is. Never waits for the source.
    pub fn status(&self) -> PostcopyStatus {
        let Self(inner) = self;
        let state = inner.state.lock();
        PostcopyStatus {
            phase: match inner.coming.paging.is_complete() {
                true => PostcopyPhase::Completed,
                false => state.phase,
            },
            broken: state.broken.clone(),
            recoveries: state.recoveries,
            file: state.file.clone(),
            paging: inner.coming.paging.status(),
        }
    }

    /// Whether all memory is here.
    pub fn is_complete(&self) -> bool {
        self.0.coming.paging.is_complete()
    }

    /// The pages of `range` are zero from now on: whoever discards memory calls this first.
    pub fn discard(&self, range: PageRange) {
        self.0.coming.paging.discard(range);
    }

    /// Waits at `listener` for the source to connect again after a break, and goes on with what is still missing. What the guest has,
    /// and which pages wait, stays as it is. A recovery that breaks is waited for again, until `go_on` says false.
    ///
    /// # Errors
    /// [`ReceiveError::NotPaused`] if there is nothing to recover; [`ReceiveError::Ended`] after `go_on`.
    pub fn recover(
        &self,
        listener: &Listener,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), ReceiveError> {
        let Self(inner) = self;
        self.enter_from_paused(PostcopyPhase::Recovering)?;
        loop {
            let stop = StopFlag::default();
            let joins = Joins::new(inner.nonce, inner.first, inner.lanes, stop.clone());
            let mut session = Rejoining {
                joins,
                until: None,
                go_on,
            };
            let joined = waiting::join(listener, &inner.shape, &mut session);
            let joined = joined.map(|()| session.joins.take());
            match joined.and_then(|joined| self.go_on_with(joined, stop)) {
                Ok(()) => return Ok(()),
                Err(error) if go_on() => {
                    log::warn!("the recovery has failed, and may be tried again: {error}");
                    inner.state.lock().broken = Some(error.to_string());
                }
                Err(_) => {
                    inner.state.lock().phase = PostcopyPhase::Paused;
                    return Err(ReceiveError::Ended);
                }
            }
        }
    }

    /// Enters `phase` if the connection has broken. Afterwards nothing is placed that came over it.
    pub(super) fn enter_from_paused(&self, phase: PostcopyPhase) -> Result<(), ReceiveError> {
        let Self(inner) = self;
        let old = {
            let mut state = inner.state.lock();
            if inner.coming.paging.is_complete() {
                return Err(ReceiveError::NotPaused("all of the guest's memory is here"));
            }
            match state.phase {
                PostcopyPhase::Paused => state.phase = phase,
                PostcopyPhase::Recovering => {
                    return Err(ReceiveError::NotPaused("the source is waited for already"));
                }
                PostcopyPhase::Saved => {
                    return Err(ReceiveError::NotPaused(
                        "the guest was saved, and never runs here again",
                    ));
                }
                PostcopyPhase::Active | PostcopyPhase::Completed => {
                    return Err(ReceiveError::NotPaused("the connection has not broken"));
                }
            }
            state.lanes.take()
        };
        old.into_iter().for_each(Feed::end);
        Ok(())
    }

    /// Goes on after a break with the `half` that the source has saved before it ended, as if that were the source. `ours` is this side's
    /// record of the hand-over. Pages that somebody waits for go first. If some cannot be read, the others come, and it can be tried again.
    ///
    /// # Errors
    /// [`ReceiveError::NotPaused`] if there is nothing to recover; [`ReceiveError::OtherHalf`] if the half does not fit, or lacks missing
    /// pages. Nothing has changed then.
    pub fn recover_from(&self, half: HalfFile, ours: Ownership) -> Result<(), ReceiveError> {
        let Self(inner) = self;
        let path = half.file().path().to_owned();
        let file = SourceFile::new(half, ours.half(Side::Destination), &inner.coming)?;
        self.enter_from_paused(PostcopyPhase::Recovering)?;
        let ours = Arc::clone(inner);
        let breaks = Arc::new(move |why: &str| ours.breaks(why));
        // Before it can break.
        let mut state = inner.state.lock();
        let (lane, requests) = match FileLane::start(file, &inner.coming, breaks) {
            Ok(started) => started,
            Err(error) => {
                state.phase = PostcopyPhase::Paused;
                return Err(error);
            }
        };
        inner.asking.set(Some(Way::File(requests)));
        state.phase = PostcopyPhase::Active;
        state.broken = None;
        state.recoveries += 1;
        state.file = Some(path);
        state.lanes = Some(Feed::File(lane));
        drop(state);
        inner.coming.paging.ask_again();
        Ok(())
    }

    /// What was begun with [`Postcopy::enter_from_paused`] has failed.
    pub(super) fn pause_again(&self) {
        self.0.state.lock().phase = PostcopyPhase::Paused;
    }

    /// The pages that have not come.
    pub(super) fn missing(&self) -> Vec<PageRange> {
        self.0.coming.paging.missing()
    }

    /// Says on the new lanes what is missing, and reads them.
    fn go_on_with(&self, mut joined: Vec<Joined>, stop: StopFlag) -> Result<(), ReceiveError> {
        let Self(inner) = self;
        let missing = inner.coming.paging.missing();
        if let Some(first) = joined.first_mut() {
            asking::say_missing(&mut first.out, &missing)?;
        }
        self.begin(joined, stop)?;
        let mut state = inner.state.lock();
        state.recoveries += 1;
        drop(state);
        inner.coming.paging.ask_again();
        Ok(())
    }

    /// Reads the lanes that have joined.
    fn begin(&self, joined: Vec<Joined>, stop: StopFlag) -> Result<(), ReceiveError> {
        let Self(inner) = self;
        // Before a lane can break.
        let mut state = inner.state.lock();
        state.phase = PostcopyPhase::Active;
        state.broken = None;
        inner
            .asking
            .set(joined.first().map(|lane| Way::Source(lane.out.clone())));
        let ours = Arc::clone(inner);
        let breaks = Arc::new(move |why: &str| ours.breaks(why));
        let lanes = Lanes::start(joined, stop, &inner.coming, breaks)?;
        state.lanes = Some(Feed::Lanes(lanes));
        Ok(())
    }

    /// Ends the lanes of a guest that does not come.
    pub(crate) fn end(&self) {
        let lanes = self.0.state.lock().lanes.take();
        lanes.into_iter().for_each(Feed::end);
    }
}

impl Inner {
    /// A lane has ended for the reason `why`. The others end, too.
    fn breaks(&self, why: &str) {
        self.asking.set(None);
        let mut state = self.state.lock();
        state.lanes.iter().for_each(Feed::shut);
        if self.coming.paging.is_complete() || state.phase != PostcopyPhase::Active {
            return;
        }
        log::warn!("the connection to the source has broken: {why}");
        state.phase = PostcopyPhase::Paused;
        state.broken = Some(why.to_owned());
        drop(state);
        (self.told)(PostcopyEvent::Paused(why.to_owned()));
    }
}

/// A session whose lanes join anew.
struct Rejoining<'a> {
    joins: Joins,
    /// When all must have come.
    until: Option<Instant>,
    go_on: &'a mut dyn FnMut() -> bool,
}

impl Session for Rejoining<'_> {
    fn is_complete(&self) -> bool {
        self.joins.is_complete()
    }

    fn join(&mut self, joining: Joining) -> Option<(ReceiveError, Joining)> {
        let refused = self.joins.join(joining);
        if !self.joins.is_empty() {
            self.until.get_or_insert_with(|| Instant::now() + JOIN);
        }
        refused
    }

    fn check(&mut self) -> Result<(), ReceiveError> {
        if !(self.go_on)() {
            return Err(ReceiveError::Ended);
        }
        match self.until {
            Some(until) if Instant::now() >= until => Err(self.joins.missing()),
            _ => Ok(()),
        }
    }
}
