// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine being migrated, for the engine on either side.

use super::error::MachineError;
use super::state::MachineState;
use crate::memory::mapping::Mapping;
use crate::memory::ram_region::RamRegion;

/// The source's machine. Owns the guest until [`SourceMachine::hand_over`].
pub trait SourceMachine: Send {
    /// Describes the machine that this guest needs, in a versioned format of the VMM. The destination compares it with
    /// its own machine before any memory is sent ([`DestinationMachine::judge`]). The guest runs meanwhile.
    ///
    /// # Errors
    /// [`MachineError`] if something about the machine is unknown. The migration then does not begin.
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

    /// The state of vCPUs, interrupt controllers and devices of a machine that is stopped: a section for each part, so that
    /// a part can change its format without the others.
    ///
    /// # Errors
    /// [`MachineError`] if a part of it cannot be read.
    fn save(&mut self) -> Result<MachineState, MachineError>;

    /// Lets a stopped machine run on (the migration failed or was cancelled). Does nothing if it runs.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot run; it stays stopped.
    fn resume(&mut self) -> Result<(), MachineError>;

    /// The destination has the guest now, or may have it. This machine must not run again, unless an operator decides
    /// that the guest belongs to this side ([`OwnershipRecord::claim`](crate::OwnershipRecord::claim)).
    fn hand_over(&mut self);
}

/// The machine stays with its VMM.
impl<M: SourceMachine + ?Sized> SourceMachine for &mut M {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        (**self).describe()
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        (**self).stop_vcpus()
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        (**self).stop_devices()
    }

    fn save(&mut self) -> Result<MachineState, MachineError> {
        (**self).save()
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        (**self).resume()
    }

    fn hand_over(&mut self) {
        (**self).hand_over();
    }
}

/// The destination's machine: made, but not running.
pub trait DestinationMachine: Send {
    /// Compares the description of [`SourceMachine::describe`] with this machine. This happens before any memory
    /// arrives. If the guest is refused, another source may come, so it must change nothing. The bytes may come from a
    /// stranger.
    ///
    /// # Errors
    /// [`MachineError`] whose reason names everything that is missing or different here.
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError>;

    /// Whether the machine can still take the guest. The engine asks before it places each section of memory (at most
    /// 1 MiB), so that a machine that has lost a device refuses at once and not after all memory was sent. The answer
    /// should take no time.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot; the migration ends, and the guest runs on at the source.
    fn check(&mut self) -> Result<(), MachineError>;

    /// Maps the source's own memory and takes it for the guest's, in a local hand-over: the guest goes on running at the source
    /// in the same memory, so nothing on this side may change it before [`DestinationMachine::run`]. Whatever takes time is
    /// done here, and not when the guest is stopped: memory slots, the memory tables of device back ends.
    ///
    /// `memory` has the regions of this machine's own memory. The engine has checked that the files are memory that can be
    /// written and does not shrink; [`GuestRam::map`](crate::GuestRam::map) takes them as they are. A machine that is made
    /// around its memory may be made now.
    ///
    /// # Errors
    /// [`MachineError`] if the machine cannot use this memory; the guest runs on at the source. So it does by default.
    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        drop(memory);
        Err(MachineError {
            action: "take the source's memory",
            reason: "this machine has memory of its own, and cannot use another's".into(),
        })
    }

    /// A local hand-over has failed, and the guest stays at the source for certain. The machine lets go of memory that
    /// [`DestinationMachine::take_memory`] gave it: it must never take that for its own, which the next migration clears.
    fn give_memory_back(&mut self) {}

    /// The guest that comes next is that of a snapshot file, and nobody hands it over. A machine that records what it does
    /// records [`Event::Restoring`](spec::trace::Event::Restoring).
    fn restoring(&mut self) {}

    /// Loads the state from [`SourceMachine::save`]: takes each section out of it. If one is left, the guest is refused. Guest
    /// memory is complete by now. Memory that was lent belongs to the source still, so loading does not change it.
    ///
    /// # Errors
    /// [`MachineError`] if the state does not fit this machine.
    fn load(&mut self, state: &mut MachineState) -> Result<(), MachineError>;

    /// The guest is to run before all of its memory is there. Returns where this process has that memory mapped: the engine
    /// handles the faults there. Until [`DestinationMachine::memory_is_there`] is called, nobody else may touch the memory, so
    /// device back ends in other processes must not run, even when [`DestinationMachine::run`] was called: what they would read
    /// of a missing page is zeros.
    ///
    /// # Errors
    /// [`MachineError`] if the machine cannot do that. So it does by default.
    fn memory_will_be_missing(&mut self) -> Result<Vec<Mapping>, MachineError> {
        Err(MachineError {
            action: "run the guest before its memory is there",
            reason: "this machine needs all of it first".into(),
        })
    }

    /// Nothing is missing any more. Device back ends of a guest that runs may run.
    fn memory_is_there(&mut self) {}

    /// The source has given the guest up: runs it, or holds it if the operator has asked for that.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot run.
    fn run(&mut self) -> Result<(), MachineError>;
}
