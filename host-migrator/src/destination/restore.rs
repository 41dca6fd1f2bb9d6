// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that comes out of a snapshot file.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::memory::page_store::PageStore;
use crate::ownership::OwnershipRecord;
use crate::paging::{PagingError, UserfaultfdError};
use crate::panics::text_of;
use crate::snapshot::{Snapshot, SnapshotError};
use crate::vm::error::MachineError;
use crate::vm::machine::DestinationMachine;
use crate::vm::state::StateError;

/// A guest that could not be restored. The snapshot is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The snapshot is damaged, or does not fit.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Pages cannot be brought while the guest runs.
    #[error(transparent)]
    Paging(#[from] PagingError),
    /// A userfaultfd cannot be had.
    #[error(transparent)]
    Userfaultfd(#[from] UserfaultfdError),
    /// The machine does not take this guest.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The machine did not take all of the state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest is restored and cannot run.
    #[error("the guest is restored, but cannot run: {0}")]
    Run(#[source] MachineError),
    /// A bug.
    #[error("a bug in the restore: {0}")]
    Panicked(String),
}

/// A guest that was restored and runs. Times are milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// Pages that were read.
    pub pages: u64,
    /// Reading the guest's memory.
    pub memory_ms: f64,
    /// Loading the machine's state.
    pub load_ms: f64,
    /// All of it, until the guest ran.
    pub total_ms: f64,
}

/// Restores the guest of `snapshot`: fills `store`, whatever that held before, by `threads` threads, and runs the guest in
/// `machine`. `loaded` is called with the number of pages that were read since it was called last.
///
/// # Errors
/// [`RestoreError`]. If `ownership` says [`Owner::Here`](crate::Owner::Here), the machine has the whole guest and can try again
/// to run it.
pub fn restore(
    snapshot: &Snapshot,
    store: &dyn PageStore,
    machine: &mut dyn DestinationMachine,
    ownership: &OwnershipRecord,
    threads: NonZeroUsize,
    loaded: &(dyn Fn(u64) + Sync),
) -> Result<RestoreReport, RestoreError> {
    let began = Instant::now();
    caught(|| {
        machine.judge(snapshot.description())?;
        let pages = snapshot.load(store, threads, loaded)?;
        let memory_ms = milliseconds(began);
        let load_ms = load_and_run(snapshot, machine, ownership)?;
        Ok(RestoreReport {
            pages,
            memory_ms,
            load_ms,
            total_ms: milliseconds(began),
        })
    })
}

/// Loads the state of the guest's machine, and runs it. Returns the milliseconds that loading took.
pub(super) fn load_and_run(
    snapshot: &Snapshot,
    machine: &mut dyn DestinationMachine,
    ownership: &OwnershipRecord,
) -> Result<f64, RestoreError> {
    machine.check()?;
    let loading = Instant::now();
    machine.restoring();
    let mut state = snapshot.state().clone();
    machine.load(&mut state)?;
    state.finish()?;
    let load_ms = milliseconds(loading);
    // Nobody else has it: what the source of the snapshot does is a matter of its operator.
    ownership.accept();
    machine.run().map_err(RestoreError::Run)?;
    Ok(load_ms)
}

/// What `restore` returns; a panic in it is an error.
pub(super) fn caught<T>(
    restore: impl FnOnce() -> Result<T, RestoreError>,
) -> Result<T, RestoreError> {
    let panicked = |panic: Box<_>| Err(RestoreError::Panicked(text_of(&*panic)));
    catch_unwind(AssertUnwindSafe(restore)).unwrap_or_else(panicked)
}

/// Milliseconds since `began`.
pub(super) fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
