// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine with two owners: the migration, which stops, saves and resumes it, and the process around it.

use std::sync::Arc;

use host_migrator::paging::Mapping;
use host_migrator::{DestinationMachine, MachineError, MachineState, RamRegion, SourceMachine};
use parking_lot::{Mutex, MutexGuard};
use reference_vmm::Machine;

/// A machine behind a lock. No owner holds the lock for longer than one step of a migration.
#[derive(Clone, Debug)]
pub struct SharedMachine(Arc<Mutex<Machine>>);

impl SharedMachine {
    /// Shares `machine`.
    pub fn new(machine: Machine) -> Self {
        Self(Arc::new(Mutex::new(machine)))
    }

    /// Locks the machine.
    pub fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock()
    }
}

impl SourceMachine for SharedMachine {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        self.lock().describe()
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        self.lock().stop_vcpus()
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        self.lock().stop_devices()
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        self.lock().save()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.lock().resume()
    }

    fn hand_over(&mut self) {
        self.lock().hand_over();
    }
}

impl DestinationMachine for SharedMachine {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        self.lock().judge(description)
    }

    fn check(&mut self) -> Result<(), MachineError> {
        self.lock().check()
    }

    fn memory_will_be_missing(&mut self) -> Result<Vec<Mapping>, MachineError> {
        self.lock().memory_will_be_missing()
    }

    fn memory_is_there(&mut self) {
        self.lock().memory_is_there();
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        self.lock().take_memory(memory)
    }

    fn give_memory_back(&mut self) {
        self.lock().give_memory_back();
    }

    fn restoring(&mut self) {
        self.lock().restoring();
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        self.lock().load(state)
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.lock().run()
    }
}
