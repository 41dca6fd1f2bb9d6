// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration away from here: one at a time, and the last one remembered.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use host_migrator::{
    Channel, Migration, MigrationMonitor, MigrationParams, MigrationReport, MigrationStatus, Source,
};

/// The running or last migration away from this machine.
#[derive(Debug, Default)]
pub struct Outgoing {
    slot: Mutex<Slot>,
    ended: Condvar,
}

/// A migration that says it is over has its report in no more than this.
const REPORT_DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Slot {
    monitor: Option<MigrationMonitor>,
    running: bool,
    report: Option<Arc<MigrationReport>>,
}

impl Outgoing {
    /// Starts a migration. Its end is waited for in a thread of its own.
    ///
    /// # Errors
    /// A sentence, if one is under way already or no thread can be started.
    pub fn start(
        self: &Arc<Self>,
        source: Source,
        params: MigrationParams,
        channel: Channel,
    ) -> Result<(), String> {
        let mut slot = self.settled();
        if slot.running {
            return Err("a migration is under way already".into());
        }
        let handle =
            Migration::start(source, params, channel).map_err(|error| error.to_string())?;
        *slot = Slot {
            monitor: Some(handle.monitor()),
            running: true,
            report: None,
        };
        drop(slot);
        let ours = Arc::clone(self);
        let waiter = thread::Builder::new()
            .name("migration-end".into())
            .spawn(move || {
                let (_, result) = handle.join();
                let mut slot = ours.slot();
                slot.running = false;
                match result {
                    Ok(report) => slot.report = Some(Arc::new(report)),
                    Err(error) => log::warn!("the migration ended: {error}"),
                }
            });
        waiter
            .map(|_| ())
            .map_err(|error| format!("cannot wait for the migration: {error}"))
    }

    /// Where it stands; the default if there was none.
    pub fn status(&self) -> MigrationStatus {
        self.slot()
            .monitor
            .as_ref()
            .map_or_else(MigrationStatus::default, MigrationMonitor::status)
    }

    /// Asks the running migration to stop.
    ///
    /// # Errors
    /// A sentence, if none runs or it cannot be undone any more.
    pub fn cancel(&self) -> Result<(), String> {
        let slot = self.slot();
        match &slot.monitor {
            Some(monitor) if slot.running => {
                if monitor.cancel() {
                    Ok(())
                } else {
                    Err("the guest has been handed over: it cannot be cancelled any more".into())
                }
            }
            _ => Err("no migration is under way".into()),
        }
    }

    /// The report of the last migration, if it completed.
    pub fn report(&self) -> Option<Arc<MigrationReport>> {
        self.settled().report.clone()
    }

    /// The slot, with the report of a migration that says it is over: its state is seen a moment before its
    /// thread has ended.
    fn settled(&self) -> MutexGuard<'_, Slot> {
        let over = |slot: &Slot| {
            slot.monitor
                .as_ref()
                .is_some_and(|m| m.status().status.is_over())
        };
        let waited = self
            .ended
            .wait_timeout_while(self.slot(), REPORT_DELAY, |slot| slot.running && over(slot));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
