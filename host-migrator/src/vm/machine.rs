// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine being migrated, for the engine on either side.

/// The machine could not do what the migration asked of it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {reason}")]
pub struct MachineError {
    /// What was asked, such as "cannot pause the guest".
    pub action: &'static str,
    /// Why it failed, with its causes.
    pub reason: String,
}

/// The source's machine. Owns the guest until [`SourceMachine::hand_over`].
pub trait SourceMachine: Send {
    /// Describes the machine that this guest needs, in a format of the VMM's own that carries a version. The
    /// destination compares it before any memory is sent ([`DestinationMachine::judge`]). The guest runs meanwhile.
    ///
    /// # Errors
    /// [`MachineError`] if something about the machine cannot be found out; the migration then does not begin.
    fn describe(&mut self) -> Result<Vec<u8>, MachineError>;

    /// Stops all vCPUs. After the return the guest does not run and the VMM does not write to guest memory.
    ///
    /// # Errors
    /// [`MachineError`] if the guest cannot be stopped; it then runs on.
    fn stop_vcpus(&mut self) -> Result<(), MachineError>;

    /// Stops the devices' rings (vhost-user GET_VRING_BASE) of a machine whose vCPUs are stopped. After the
    /// return no back end writes guest memory.
    ///
    /// # Errors
    /// [`MachineError`] if a back end does not answer.
    fn stop_devices(&mut self) -> Result<(), MachineError>;

    /// The state of vCPUs, interrupt controllers and devices of a machine that is stopped.
    ///
    /// # Errors
    /// [`MachineError`] if a part of it cannot be read.
    fn save(&mut self) -> Result<Vec<u8>, MachineError>;

    /// Lets a stopped machine run on (the migration failed or was cancelled). Does nothing if it runs.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot run; it stays stopped.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// The destination has the guest now, or may have it: this machine does not run again, unless an operator decides
    /// that the guest is on this side after all ([`OwnershipRecord::claim`](crate::OwnershipRecord::claim)).
    fn hand_over(&mut self);
}

/// The destination's machine: made, but not running.
pub trait DestinationMachine: Send {
    /// Compares what [`SourceMachine::describe`] gave with this machine. Comes before any memory, and may come
    /// again from another source if this one is refused: it must change nothing. The bytes may come from a stranger.
    ///
    /// # Errors
    /// [`MachineError`] whose reason names everything that this machine lacks or that differs.
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError>;

    /// Whether it can still take the guest: asked in every round, so that a machine that has lost a device while memory
    /// arrives says so before the guest is stopped.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot; the migration ends, and the guest runs on at the source.
    fn check(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Loads the state from [`SourceMachine::save`]. Guest memory is complete by now.
    ///
    /// # Errors
    /// [`MachineError`] if the state does not fit this machine.
    fn load(&mut self, state: &[u8]) -> Result<(), MachineError>;

    /// The source has given the guest up: run it (or hold it, where the operator said so).
    ///
    /// # Errors
    /// [`MachineError`] if it cannot run.
    fn run(&mut self) -> Result<(), MachineError>;
}
