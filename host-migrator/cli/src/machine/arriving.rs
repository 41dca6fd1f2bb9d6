// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine that the engine receives a guest into. It tells the process about each step of the arrival before the
//! engine tells the source.

use host_migrator::paging::Mapping;
use host_migrator::{DestinationMachine, MachineError, MachineState, RamRegion};

use super::process::Process;

/// A machine whose guest is on its way.
#[derive(Debug)]
pub(super) struct Arriving<'a>(pub(super) &'a Process);

impl DestinationMachine for Arriving<'_> {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        self.0.machine().clone().judge(description)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        self.0.machine().clone().check()
    }

    fn memory_will_be_missing(&mut self) -> Result<Vec<Mapping>, MachineError> {
        self.0.machine().clone().memory_will_be_missing()
    }

    fn memory_is_there(&mut self) {
        self.0.machine().clone().memory_is_there();
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        let Self(process) = self;
        process.machine().clone().take_memory(memory)?;
        process.memory_was_replaced()
    }

    fn give_memory_back(&mut self) {
        let Self(process) = self;
        process.machine().clone().give_memory_back();
        if let Err(error) = process.memory_was_replaced() {
            log::error!("{error}");
        }
    }

    fn restoring(&mut self) {
        let Self(process) = self;
        process.machine().clone().restoring();
    }

    /// After this returns, the engine tells the source that it may give the guest up.
    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        let Self(process) = self;
        process.life().take_over().map_err(|reason| MachineError {
            action: "load the machine's state",
            reason,
        })?;
        process.machine().clone().load(state)
    }

    /// After this returns, the engine tells the source that the guest runs.
    fn run(&mut self) -> Result<(), MachineError> {
        let Self(process) = self;
        // The machine has its guest: another source would connect and wait for nothing.
        process.stop_listening();
        process.machine().clone().run()?;
        process.life().arrived(process.machine().lock().is_held());
        Ok(())
    }
}
