// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration needs of the guest.

use std::fmt;
use std::sync::Arc;

use crate::memory::guest_memory::GuestMemory;
use crate::ownership::OwnershipRecord;
use crate::report::trace::Trace;
use crate::vm::dirty_log::DirtyLog;
use crate::vm::hint_source::HintSource;
use crate::vm::machine::SourceMachine;
use crate::vm::throttle::Throttle;

/// Everything that a migration needs of the guest.
#[non_exhaustive]
pub struct Source<'m> {
    /// Stops, saves and resumes the guest.
    pub machine: Box<dyn SourceMachine + 'm>,
    /// Its memory.
    pub ram: Arc<dyn GuestMemory>,
    /// The dirty logs of everything that writes to memory.
    pub logs: Vec<Box<dyn DirtyLog>>,
    /// The source of free page hints, if there is one.
    pub hints: Option<Box<dyn HintSource>>,
    /// Slows the guest down, if the VMM can do that.
    pub throttle: Option<Box<dyn Throttle>>,
    /// The migration's trace, for tests.
    pub trace: Trace,
    /// Who owns the guest: the same record for all of the guest's migrations.
    pub ownership: OwnershipRecord,
}

impl<'m> Source<'m> {
    /// A guest that is here, with `machine` and `memory`, and nothing else yet: no log, no hints, no trace. The machine may
    /// be borrowed (`&mut machine`) for [`Migration::run`](crate::Migration::run).
    pub fn new(machine: Box<dyn SourceMachine + 'm>, memory: Arc<dyn GuestMemory>) -> Self {
        Self {
            machine,
            ram: memory,
            logs: Vec::new(),
            hints: None,
            throttle: None,
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

    /// As [`Source::log`], for logs that the VMM has in boxes.
    #[must_use]
    pub fn logs(mut self, logs: impl IntoIterator<Item = Box<dyn DirtyLog>>) -> Self {
        self.logs.extend(logs);
        self
    }

    /// Sets the source of free page hints.
    #[must_use]
    pub fn hints(mut self, hints: impl HintSource + 'static) -> Self {
        self.hints = Some(Box::new(hints));
        self
    }

    /// Sets what slows the guest down, for [`MigrationParams::auto_converge`](crate::MigrationParams::auto_converge).
    #[must_use]
    pub fn throttle(mut self, throttle: impl Throttle + 'static) -> Self {
        self.throttle = Some(Box::new(throttle));
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

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("memory", self.ram.layout())
            .field("logs", &self.logs.len())
            .field("hints", &self.hints.is_some())
            .finish_non_exhaustive()
    }
}
