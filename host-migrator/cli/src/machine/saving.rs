// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine whose guest is saved into a file.

use host_migrator::{MachineError, MachineState, SourceMachine};

use super::shared::SharedMachine;

/// A machine whose guest is to stay stopped after it was saved, if that is wanted.
#[derive(Debug)]
pub(super) struct Saving {
    machine: SharedMachine,
    hold: bool,
    saved: bool,
}

impl Saving {
    pub(super) fn new(machine: SharedMachine, hold: bool) -> Self {
        let saved = false;
        Self {
            machine,
            hold,
            saved,
        }
    }
}

impl SourceMachine for Saving {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        self.machine.describe()
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        self.machine.stop_vcpus()
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        self.machine.stop_devices()
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        let state = self.machine.save()?;
        self.saved = true;
        Ok(state)
    }

    /// A guest that is to be held stays stopped. If its save fails after this, the process lets it run.
    fn resume(&mut self) -> Result<(), MachineError> {
        match self.hold && self.saved {
            true => Ok(()),
            false => self.machine.resume(),
        }
    }

    fn hand_over(&mut self) {
        self.machine.hand_over();
    }
}
