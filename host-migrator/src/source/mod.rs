// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source's side: a migration that runs in a thread of its own.

mod ending;
mod error;
mod estimate;
mod handover;
mod outgoing;
mod pacing;
pub mod params;
mod precopy;
mod progress;
mod sender;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::memory::guest_memory::GuestMemory;
use crate::ownership::OwnershipRecord;
use crate::report::stats::{MigrationReport, MigrationStatus};
use crate::report::trace::Trace;
use crate::source::params::MigrationParams;
use crate::vm::dirty_log::DirtyLog;
use crate::vm::hint_source::HintSource;
use crate::vm::machine::SourceMachine;
use crate::wire::Connection;
pub use error::MigrationError;
use progress::Progress;

/// Everything that a migration needs of the guest.
pub struct Source {
    /// Stops, saves and resumes the guest.
    pub machine: Box<dyn SourceMachine>,
    /// Its memory.
    pub ram: Arc<dyn GuestMemory>,
    /// The dirty logs of everything that writes to memory.
    pub logs: Vec<Box<dyn DirtyLog>>,
    /// The source of free page hints, if there is one.
    pub hints: Option<Box<dyn HintSource>>,
    /// The migration's trace, for tests.
    pub trace: Trace,
    /// Who owns the guest: the same record for all of the guest's migrations.
    pub ownership: OwnershipRecord,
}

impl Source {
    /// A guest that is here, with `machine` and `memory`, and nothing else yet: no log, no hints, no trace.
    pub fn new(machine: Box<dyn SourceMachine>, memory: Arc<dyn GuestMemory>) -> Self {
        Self {
            machine,
            ram: memory,
            logs: Vec::new(),
            hints: None,
            trace: Trace::default(),
            ownership: OwnershipRecord::here(),
        }
    }

    /// Adds the dirty log of something that writes to memory. Everything that does needs one, or its writes are lost.
    #[must_use]
    pub fn log(mut self, log: impl DirtyLog + 'static) -> Self {
        self.logs.push(Box::new(log));
        self
    }

    /// Sets the source of free page hints.
    #[must_use]
    pub fn hints(mut self, hints: impl HintSource + 'static) -> Self {
        self.hints = Some(Box::new(hints));
        self
    }

    /// Records what the migration does in `trace`.
    #[must_use]
    pub fn trace(mut self, trace: Trace) -> Self {
        self.trace = trace;
        self
    }

    /// Sets the record of who owns the guest, which outlives one migration.
    #[must_use]
    pub fn ownership(mut self, ownership: OwnershipRecord) -> Self {
        self.ownership = ownership;
        self
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("memory", self.ram.layout())
            .field("logs", &self.logs.len())
            .field("hints", &self.hints.is_some())
            .finish_non_exhaustive()
    }
}

/// A live migration.
#[derive(Debug)]
pub struct Migration;

impl Migration {
    /// Starts to migrate `source` over `channel`, and returns at once.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        source: Source,
        params: MigrationParams,
        channel: Connection,
    ) -> io::Result<MigrationHandle> {
        Self::start_observed(source, params, channel, |_| ())
    }

    /// As [`Migration::start`]. `on_change` is called on the migration's thread whenever it enters another state, and holds
    /// the migration up for as long as it takes: with the guest stopped, too.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start_observed(
        mut source: Source,
        params: MigrationParams,
        channel: Connection,
        on_change: impl Fn(&MigrationStatus) + Send + Sync + 'static,
    ) -> io::Result<MigrationHandle> {
        let channel = channel.with_patience(params.peer_timeout);
        let progress = Arc::new(Progress::new(channel.stop_flag(), Box::new(on_change)));
        let theirs = Arc::clone(&progress);
        let thread = thread::Builder::new()
            .name("migration".into())
            .spawn(move || {
                let result = precopy::migrate(&mut source, &params, channel, &theirs);
                (source, result)
            })?;
        Ok(MigrationHandle { progress, thread })
    }
}

/// A migration that has been started.
#[derive(Debug)]
pub struct MigrationHandle {
    progress: Arc<Progress>,
    thread: JoinHandle<(Source, Result<MigrationReport, MigrationError>)>,
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
    pub fn join(self) -> (Source, Result<MigrationReport, MigrationError>) {
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

    /// As [`MigrationHandle::cancel`].
    pub fn cancel(&self) -> bool {
        self.0.cancel()
    }
}
