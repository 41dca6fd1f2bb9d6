// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source's side: a migration on the caller's thread, or in one of its own.

pub mod clock;
mod converging;
mod ending;
mod error;
mod estimate;
mod greeting;
mod guest;
mod handover;
mod local;
mod outgoing;
mod pacing;
pub mod params;
mod postcopy;
mod precopy;
mod progress;
mod sender;
mod switchover;

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use crate::report::events::TimedEvent;
use crate::report::stats::{MigrationReport, MigrationStatus};
use crate::sink::Sink;
use crate::snapshot::{Saved, SnapshotError, Storage};
use crate::source::params::{MigrationParams, Tuning};
use crate::wire::{Connection, StopFlag};
pub use error::MigrationError;
pub use guest::Source;
use postcopy::orders::{HalfOrder, Order};
use progress::Progress;

/// A live migration over a connection.
///
/// [`Migration::run`] does it on the caller's thread, with a machine that is only borrowed; [`Migration::start`] in a thread of
/// its own.
#[derive(Debug)]
pub struct Migration {
    connection: Connection,
    params: MigrationParams,
    progress: Arc<Progress>,
}

impl Migration {
    /// A migration over `connection`, which has not begun. Its time counts from here.
    pub fn new(connection: Connection, params: MigrationParams) -> Self {
        Self::observed(connection, params, |_| ())
    }

    /// As [`Migration::new`]. `on_change` is called on the migration's thread whenever it enters another state, and holds
    /// the migration up for as long as it takes: with the guest stopped, too.
    pub fn observed(
        connection: Connection,
        params: MigrationParams,
        on_change: impl Fn(&MigrationStatus) + Send + Sync + 'static,
    ) -> Self {
        let connection = connection.with_patience(params.peer_timeout);
        let progress = Arc::new(Progress::new(
            connection.stop_flag(),
            params.tuning(),
            Box::new(on_change),
        ));
        Self {
            connection,
            params,
            progress,
        }
    }

    /// A handle for other threads, to read its status or cancel it.
    pub fn monitor(&self) -> MigrationMonitor {
        MigrationMonitor(Arc::clone(&self.progress))
    }

    /// Migrates `source` on this thread, until it has ended.
    ///
    /// # Errors
    /// [`MigrationError`] if it did not complete.
    pub fn run(self, source: &mut Source<'_>) -> Result<MigrationReport, MigrationError> {
        precopy::migrate(source, &self.params, self.connection, &self.progress)
    }

    /// Starts to migrate `source` over `connection` in a thread of its own, and returns at once.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        source: Source<'static>,
        params: MigrationParams,
        connection: Connection,
    ) -> io::Result<MigrationHandle> {
        Self::new(connection, params).spawn(source)
    }

    /// As [`Migration::start`], with the observer of [`Migration::observed`].
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start_observed(
        source: Source<'static>,
        params: MigrationParams,
        connection: Connection,
        on_change: impl Fn(&MigrationStatus) + Send + Sync + 'static,
    ) -> io::Result<MigrationHandle> {
        Self::observed(connection, params, on_change).spawn(source)
    }

    fn spawn(self, mut source: Source<'static>) -> io::Result<MigrationHandle> {
        let progress = Arc::clone(&self.progress);
        let thread = thread::Builder::new()
            .name("migration".into())
            .spawn(move || {
                let result = self.run(&mut source);
                (source, result)
            })?;
        Ok(MigrationHandle { progress, thread })
    }
}

impl Migration {
    /// Copies the guest of `source` into `sink`, on this thread. The guest runs while its memory is copied, is stopped for
    /// the last pages and its state, and runs on when the sink has all of it. [`GuestCopy`] can also be observed and cancelled.
    ///
    /// The sink is told nothing of an error: what it has got by then is worth nothing.
    ///
    /// # Errors
    /// [`MigrationError`] if the copy did not complete.
    pub fn copy<S: Sink>(
        source: &mut Source<'_>,
        params: &MigrationParams,
        sink: &mut S,
    ) -> Result<MigrationReport, MigrationError> {
        GuestCopy::observed(params.clone(), |_| ()).run(source, sink)
    }
}

/// A copy of a running guest into a sink, which has not begun.
#[derive(Debug)]
pub struct GuestCopy {
    params: MigrationParams,
    progress: Arc<Progress>,
}

impl GuestCopy {
    /// A copy with these `params`. Its time counts from here. `on_change` is as for [`Migration::observed`].
    pub fn observed(
        params: MigrationParams,
        on_change: impl Fn(&MigrationStatus) + Send + Sync + 'static,
    ) -> Self {
        let progress = Arc::new(Progress::new(
            StopFlag::default(),
            params.tuning(),
            Box::new(on_change),
        ));
        Self { params, progress }
    }

    /// A handle for other threads, to read its status or cancel it.
    pub fn monitor(&self) -> MigrationMonitor {
        MigrationMonitor(Arc::clone(&self.progress))
    }

    /// As [`Migration::copy`].
    ///
    /// # Errors
    /// [`MigrationError`] if the copy did not complete.
    pub fn run<S: Sink>(
        self,
        source: &mut Source<'_>,
        sink: &mut S,
    ) -> Result<MigrationReport, MigrationError> {
        precopy::copy(source, &self.params, sink, &self.progress)
    }
}

/// A migration that has been started.
#[derive(Debug)]
pub struct MigrationHandle {
    progress: Arc<Progress>,
    thread: JoinHandle<(Source<'static>, Result<MigrationReport, MigrationError>)>,
}

impl MigrationHandle {
    /// Its status. Never waits for the migration or its peer.
    pub fn status(&self) -> MigrationStatus {
        self.progress.status()
    }

    /// Asks it to stop, without waiting; then the guest runs on here. Returns `false` if the guest has been
    /// handed over, or the migration was cancelled before.
    pub fn cancel(&self) -> bool {
        self.progress.cancel()
    }

    /// Whether it has ended, so that [`MigrationHandle::join`] does not wait.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// A handle for other threads, to read its status or cancel it while one thread joins.
    pub fn monitor(&self) -> MigrationMonitor {
        MigrationMonitor(Arc::clone(&self.progress))
    }

    /// Waits for its end. The source comes back, for another try or to be taken down.
    ///
    /// # Errors
    /// [`MigrationError`] if it did not complete.
    ///
    /// # Panics
    /// If the end of the migration panicked; a panic before is [`MigrationError::Panicked`].
    pub fn join(self) -> (Source<'static>, Result<MigrationReport, MigrationError>) {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A view of a migration that another thread may hold.
#[derive(Clone, Debug)]
pub struct MigrationMonitor(Arc<Progress>);

impl MigrationMonitor {
    /// As [`MigrationHandle::status`].
    pub fn status(&self) -> MigrationStatus {
        self.0.status()
    }

    /// What has happened: the first `most` events after that with this `number`; 0 for all. Old ones are forgotten if there are many
    /// ([`MOST_EVENTS`](crate::report::events::MOST_EVENTS)).
    pub fn events_after(&self, number: u64, most: usize) -> Vec<TimedEvent> {
        self.0.events_after(number, most)
    }

    /// As [`MigrationHandle::cancel`].
    pub fn cancel(&self) -> bool {
        self.0.cancel()
    }

    /// Hands the guest over before its memory, as soon as that is possible. Returns whether the migration may do so: only one with
    /// [`MigrationParams::postcopy`] that has not come to its end.
    pub fn start_postcopy(&self) -> bool {
        let may = self.0.status().postcopy_allowed && !self.0.status().status.is_over();
        if may {
            self.0.orders().start();
        }
        may
    }

    /// Goes on over `connection` to the destination, which waits for that, with a postcopy whose connection has broken. Does not wait
    /// for its success. Returns `false` if the migration does not wait for a connection.
    pub fn recover(&self, connection: Connection) -> bool {
        let order = Order::Recover(Box::new(connection));
        self.0.orders().give(order).is_ok()
    }

    /// Ends a postcopy whose connection has broken. What the destination does not have of the guest's memory is lost with this
    /// process. Returns `false` if the migration does not wait for a connection.
    pub fn give_memory_up(&self) -> bool {
        self.0.orders().give(Order::GiveUp).is_ok()
    }

    /// Ends a postcopy whose connection has broken, and saves what the destination may lack of the guest's memory to `storage`: this
    /// side's half of it. [`reconcile`](crate::snapshot::reconcile) makes a guest of both halves. If it cannot be saved, the
    /// migration waits on. `None` if the migration does not wait for a connection.
    pub fn save_half(&self, storage: Box<dyn Storage>) -> Option<Result<Saved, SnapshotError>> {
        let (answer, saved) = mpsc::channel();
        let order = Order::SaveHalf(HalfOrder { storage, answer });
        self.0.orders().give(order).ok()?;
        saved.recv().ok()
    }

    /// What is in force now of all that may be changed while the migration runs.
    pub fn tuning(&self) -> Tuning {
        self.0.tuning()
    }

    /// Changes how the running migration goes on, within a moment. `change` must not wait, nor use this migration.
    pub fn tune<T>(&self, change: impl FnOnce(&mut Tuning) -> T) -> T {
        self.0.tune(change)
    }
}
