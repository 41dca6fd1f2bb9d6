// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine that is nothing but its memory.

use super::error::MachineError;
use super::machine::{DestinationMachine, SourceMachine};
use super::state::MachineState;

/// A machine without vCPUs, devices and state, on either side: for tools and benches that move memory alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct StillMachine;

impl SourceMachine for StillMachine {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        Ok(Vec::new())
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        Ok(MachineState::default())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn hand_over(&mut self) {}
}

impl DestinationMachine for StillMachine {
    fn judge(&mut self, _description: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn load(&mut self, _state: &mut MachineState) -> Result<(), MachineError> {
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        Ok(())
    }
}
