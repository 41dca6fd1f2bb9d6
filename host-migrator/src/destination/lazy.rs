// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that comes out of a snapshot file and runs before its memory was read.

use std::sync::Arc;
use std::time::Instant;

use super::restore::{RestoreError, RestoreReport, caught, load_and_run, milliseconds};
use crate::memory::page_store::PageStore;
use crate::ownership::OwnershipRecord;
use crate::paging::{MissingPages, Paging, PagingEvent, PagingOptions, Prefault, Userfaultfd};
use crate::snapshot::{Snapshot, SnapshotError};
use crate::vm::machine::DestinationMachine;

/// How a guest is restored that runs at once.
#[derive(Debug, Default)]
pub struct LazyRestore {
    /// How the guest's page faults are answered, and which pages are loaded first.
    pub paging: PagingOptions,
    /// How fast pages are loaded that the guest does not wait for.
    pub prefault: Prefault,
}

/// Restores the guest of `snapshot` and runs it in `machine` at once. Its memory, which `store` holds, comes while it runs.
///
/// The returned [`Paging`] brings it. Keep it until it is complete: a guest whose pages nobody brings stands still. `told` hears
/// of its end, maybe before this returns. On [`PagingEvent::Complete`], call [`DestinationMachine::memory_is_there`]. On
/// [`PagingEvent::Failed`], stop the guest. Until it is complete, holes in the memory files are no zeros, so the guest must not be
/// migrated or saved.
///
/// # Errors
/// [`RestoreError`], as [`restore`](super::restore()) has.
pub fn restore_lazily(
    snapshot: &Arc<Snapshot>,
    store: &dyn PageStore,
    machine: &mut dyn DestinationMachine,
    ownership: &OwnershipRecord,
    how: LazyRestore,
    told: Box<dyn Fn(PagingEvent) + Send + Sync>,
) -> Result<(Paging, RestoreReport), RestoreError> {
    let began = Instant::now();
    caught(|| {
        machine.judge(snapshot.description())?;
        snapshot.check_layout(store.layout())?;
        let content = snapshot.content()?;
        let uffd = Userfaultfd::open(false)?;
        store.clear().map_err(SnapshotError::from)?;
        let mappings = machine.memory_will_be_missing()?;
        let missing = MissingPages::new(uffd, mappings, content)?;
        let pager = Arc::clone(snapshot);
        let paging = Paging::start(missing, pager, how.paging, told)?;
        let memory_ms = milliseconds(began);
        let load_ms = load_and_run(snapshot, machine, ownership)?;
        paging.set_prefault(how.prefault);
        let report = RestoreReport {
            pages: paging.status().pages,
            memory_ms,
            load_ms,
            total_ms: milliseconds(began),
        };
        Ok((paging, report))
    })
}
