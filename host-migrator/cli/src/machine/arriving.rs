// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine of a process that receives a guest, as the engine sees it: what the process must know of the
//! arrival, it hears here, before the source does.

use host_migrator::{DestinationMachine, MachineError};

use super::process::Process;

/// A machine whose guest is on its way.
#[derive(Debug)]
pub(super) struct Arriving<'a>(pub(super) &'a Process);

impl DestinationMachine for Arriving<'_> {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        self.0.machine().clone().judge(description)
    }

    /// When this returns, the source is told that it may give the guest up.
    fn load(&mut self, state: &[u8]) -> Result<(), MachineError> {
        let Self(process) = self;
        process.life().take_over().map_err(|reason| MachineError {
            action: "load the machine's state",
            reason,
        })?;
        process.machine().clone().load(state)
    }

    /// When this returns, the source is told that the guest runs.
    fn run(&mut self) -> Result<(), MachineError> {
        let Self(process) = self;
        // Nobody else may connect to a machine that has its guest, and wait there for nothing.
        process.stop_listening();
        process.machine().clone().run()?;
        process.life().arrived(process.machine().lock().is_held());
        Ok(())
    }
}
