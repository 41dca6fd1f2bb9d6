// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration away from here: one at a time, and the last one remembered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use host_migrator::{
    Channel, Migration, MigrationMonitor, MigrationParams, MigrationReport, MigrationStatus, Source,
};

/// The running or last migration away from this machine.
#[derive(Debug, Default)]
pub struct Outgoing(Mutex<Slot>);

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
        let mut slot = self.slot();
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
        self.slot().report.clone()
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
