// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration's thread after the hand-over: it waits until nothing is missing at the destination, and gets new lanes after a break.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spec::stream::{SectionKind, runs};
use spec::{PAGE_SIZE, PageRange};

use super::joining::{self, JoinedLanes, Session};
use super::lanes::{End, Lanes, Shared};
use super::orders::{HalfOrder, Order};
use super::promise::Promise;
use crate::ownership::OwnershipRecord;
use crate::report::stats::{MigrationState, PostcopyReport};
use crate::sink::channels::Introduced;
use crate::source::error::MigrationError;
use crate::source::params::MigrationParams;
use crate::source::progress::Progress;
use crate::source::sender::milliseconds;
use crate::wire::{Connection, Redial, SectionError};

/// How often the status is brought up to date.
const TICK: Duration = Duration::from_millis(50);
/// How long a lane may take to connect again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves promised pages.
pub(crate) struct Server {
    shared: Arc<Shared>,
    session: Session,
    lanes: Option<Lanes>,
    patience: Duration,
    /// The hand-over was sent and not confirmed.
    unconfirmed: Option<String>,
    recoveries: u64,
}

impl Server {
    /// Begins to answer requests for the pages of `promise` on the lanes that have `joined`.
    pub(super) fn start(
        promise: Promise,
        session: Session,
        joined: JoinedLanes,
        params: &MigrationParams,
    ) -> io::Result<Self> {
        let pushing = u64::from(session.lanes.saturating_sub(1).max(1));
        let pace = params.max_postcopy_bandwidth.map(|rate| rate / pushing);
        let shared = Arc::new(Shared::new(promise, params.compression, pace));
        Ok(Self {
            lanes: Some(Lanes::start(joined, &shared)?),
            shared,
            session,
            patience: params.peer_timeout,
            unconfirmed: None,
            recoveries: 0,
        })
    }

    /// The pages that come later.
    pub(super) fn promised(&self) -> Vec<PageRange> {
        self.shared.promise.runs()
    }

    /// The destination did not confirm the hand-over, for this reason. It does so when it comes back.
    pub(super) fn is_unconfirmed(&mut self, why: String) {
        self.unconfirmed = Some(why);
    }

    /// Serves until nothing is missing at the destination. Breaks end only with a connection over which it goes on, or an order to
    /// give the memory up.
    ///
    /// # Errors
    /// [`MigrationError::MemoryGivenUp`] after such an order.
    pub(crate) fn run(
        mut self,
        ownership: &OwnershipRecord,
        progress: &Progress,
    ) -> Result<PostcopyReport, MigrationError> {
        let began = Instant::now();
        self.shared.push();
        let before = progress.status().ram.transferred;
        if let Some(why) = self.unconfirmed.take() {
            self.recover(&why, ownership, progress)?;
        }
        self.enter(progress, MigrationState::PostcopyActive, None);
        loop {
            let end = self.shared.end_within(TICK);
            progress.update(|status| {
                status.ram.transferred = before + self.shared.bytes.load(Ordering::Relaxed);
                status.ram.remaining = self.shared.promise.left() * PAGE_SIZE;
                status.postcopy_requests = self.shared.requests.load(Ordering::Relaxed);
            });
            match end {
                None => {}
                Some(End::Complete) => break,
                Some(End::Broken(why)) => {
                    self.recover(&why, ownership, progress)?;
                    self.enter(progress, MigrationState::PostcopyActive, None);
                }
            }
        }
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Ok(PostcopyReport {
            ms: milliseconds(began.elapsed()),
            pages_promised: self.shared.promise.total(),
            pages_sent: count(&self.shared.pages),
            requests: count(&self.shared.requests),
            bytes: count(&self.shared.bytes),
            recoveries: self.recoveries,
        })
    }

    fn enter(&self, progress: &Progress, state: MigrationState, why: Option<&str>) {
        progress.update(|status| {
            status.status = state;
            status.error_desc = why.map(str::to_owned);
            status.recoveries = self.recoveries;
        });
    }

    /// Waits, with the lanes ended for the reason `why`, for orders until one of them has led to new lanes.
    fn recover(
        &mut self,
        why: &str,
        ownership: &OwnershipRecord,
        progress: &Progress,
    ) -> Result<(), MigrationError> {
        self.lanes = None;
        log::warn!("the connection to the destination has broken: {why}");
        let mut why = why.to_owned();
        loop {
            self.enter(progress, MigrationState::PostcopyPaused, Some(&why));
            let connection = match progress.orders().wait() {
                Order::Recover(connection) => connection,
                Order::GiveUp => return Err(MigrationError::MemoryGivenUp(why)),
                Order::SaveHalf(order) => match self.save_half(order, ownership) {
                    Some(path) => return Err(MigrationError::HalfSaved(path)),
                    None => continue,
                },
            };
            self.enter(progress, MigrationState::PostcopyRecover, Some(&why));
            match self.rejoin(*connection) {
                Ok(lanes) => {
                    // Only a destination that has the guest lets lanes join again.
                    ownership.given();
                    self.lanes = Some(lanes);
                    self.recoveries += 1;
                    return Ok(());
                }
                Err(error) => {
                    why = format!("the recovery has failed, and can be tried again: {error}");
                    log::warn!("{why}");
                }
            }
        }
    }

    /// Saves what the destination may lack. Returns where to; `None` if it could not be saved, and is here still.
    fn save_half(&self, order: HalfOrder, ownership: &OwnershipRecord) -> Option<PathBuf> {
        let path = order.storage.path().to_owned();
        let saved = self.shared.promise.save(order.storage, ownership.get());
        let path = saved.is_ok().then_some(path);
        // Whoever gave the order may have gone.
        let _ = order.answer.send(saved);
        path
    }

    /// Has lanes join again, over `connection` and others to the same peer, and hears what is missing.
    fn rejoin(&self, mut connection: Connection) -> Result<Lanes, MigrationError> {
        let redial = Redial::of(&mut connection);
        let first = parking_lot::Mutex::new(Some(connection));
        let connect = || match first.lock().take() {
            Some(first) => Ok(first),
            None => redial.another(CONNECT_TIMEOUT),
        };
        let mut joined = joining::join(self.session, connect, self.patience)?;
        if let Some(first) = joined.lanes.first_mut() {
            let missing = self.hear(first)?;
            let known = self.shared.promise.send_again(&missing);
            known.map_err(|error| {
                first.out.abort(&error.to_string());
                MigrationError::Io(io::Error::new(io::ErrorKind::InvalidData, error))
            })?;
        }
        Ok(Lanes::start(joined, &self.shared)?)
    }

    /// What is missing at the destination.
    fn hear(&self, lane: &mut Introduced) -> Result<Vec<PageRange>, SectionError> {
        let mut missing: Vec<PageRange> = Vec::new();
        loop {
            let table = (lane.peer).expect_payload(SectionKind::Missing, "what is missing")?;
            if table.is_empty() {
                return Ok(missing);
            }
            for run in runs(SectionKind::Missing, &table) {
                let run = run?;
                // In order and apart, so that there are no more of them than pages.
                if missing.last().is_some_and(|last| last.end() >= run.first()) {
                    return Err(spec::stream::StreamError::Malformed(SectionKind::Missing).into());
                }
                missing.push(run);
            }
        }
    }
}
