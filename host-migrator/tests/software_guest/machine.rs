// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Machines without vCPUs: they know whether their guest may run, and block its threads while it may not.

use std::sync::{Arc, Condvar, Mutex};

use host_migrator::{DestinationMachine, MachineError, MachineState, SourceMachine};

/// What the source's machine requires of the destination.
pub const DESCRIPTION: &[u8] = b"a machine for a guest made of threads";
/// The state of the source's machine.
pub const STATE: &[u8] = b"registers of a guest made of threads";

/// [`STATE`] in its section.
pub fn state() -> MachineState {
    let mut state = MachineState::default();
    state.add("vcpus", 1, STATE.into()).unwrap();
    state
}

#[derive(Default)]
pub struct SoftMachine {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    stays_stopped: bool,
    handed_over: bool,
    vcpus: usize,
    parked: usize,
}

impl SoftMachine {
    /// A vCPU begins to run.
    pub fn add_vcpu(&self) {
        self.state.lock().unwrap().vcpus += 1;
    }

    /// A vCPU ends.
    pub fn remove_vcpu(&self) {
        self.state.lock().unwrap().vcpus -= 1;
        self.changed.notify_all();
    }

    /// A vCPU calls this between two of its steps. Waits while the machine is stopped. Returns `false` if it will never
    /// run again.
    pub fn run_point(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.stopped {
            state.parked += 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |state| state.stopped && !state.handed_over)
                .unwrap();
            state.parked -= 1;
        }
        !state.handed_over
    }

    pub fn is_stopped(&self) -> bool {
        self.state.lock().unwrap().stopped
    }

    /// The engine's next [`SourceMachine::resume`] does nothing: a test looks at what the guest has left.
    pub fn stay_stopped(&self) {
        self.state.lock().unwrap().stays_stopped = true;
    }

    /// An operator has decided that this side owns the guest.
    pub fn take_back(&self) {
        let mut state = self.state.lock().unwrap();
        state.handed_over = false;
        state.stopped = false;
        self.changed.notify_all();
    }

    pub fn is_handed_over(&self) -> bool {
        self.state.lock().unwrap().handed_over
    }
}

/// The engine's side of it.
pub struct MachineForEngine(pub Arc<SoftMachine>);

impl SourceMachine for MachineForEngine {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        Ok(DESCRIPTION.into())
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        let mut state = self.0.state.lock().unwrap();
        assert!(
            !state.handed_over,
            "a guest that was handed over is stopped again"
        );
        state.stopped = true;
        drop(
            self.0
                .changed
                .wait_while(state, |state| state.parked < state.vcpus)
                .unwrap(),
        );
        Ok(())
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        assert!(self.0.is_stopped());
        Ok(state())
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        let mut state = self.0.state.lock().unwrap();
        assert!(!state.handed_over, "a guest that was handed over runs here");
        state.stopped = std::mem::take(&mut state.stays_stopped);
        self.0.changed.notify_all();
        Ok(())
    }

    fn hand_over(&mut self) {
        let mut state = self.0.state.lock().unwrap();
        assert!(state.stopped && !state.handed_over);
        state.handed_over = true;
        self.0.changed.notify_all();
    }
}

#[derive(Default)]
pub struct SoftDestination {
    pub loaded: bool,
    pub runs: bool,
}

impl DestinationMachine for SoftDestination {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        assert!(!self.loaded && !self.runs);
        if description != DESCRIPTION {
            return Err(MachineError {
                action: "take this guest",
                reason: "it needs another machine".into(),
            });
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError> {
        assert!(!self.loaded && !self.runs);
        if state.take("vcpus")?.bytes != STATE {
            return Err(MachineError {
                action: "load the machine",
                reason: "not its state".into(),
            });
        }
        self.loaded = true;
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        assert!(self.loaded && !self.runs);
        self.runs = true;
        Ok(())
    }
}
