// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A waiting machine takes the memory of the source, which still runs the guest in it. So nothing here changes the memory, and
//! everything that takes time is done now: KVM's slots, the balloon's memory table.

use std::fmt::Display;
use std::sync::Arc;

use host_migrator::{MachineError, RamRegion};
use spec::PAGE_SIZE;

use super::{Life, Machine, failed};
use crate::heartbeat::Heartbeat;
use crate::memory::MachineMemory;

const ACTION: &str = "take the source's memory";

impl Machine {
    /// Takes `memory`, which has the regions of the machine's own.
    pub(super) fn lend(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        if self.life != Life::Awaiting {
            return Err(failed(ACTION)("there is a guest here already"));
        }
        let memory = MachineMemory::lent(memory, self.memory.options()).map_err(failed(ACTION))?;
        self.lent = true;
        self.use_memory(memory)
    }

    /// Lets go of lent memory. A machine that has not loaded a guest gets memory of its own, and can wait for another.
    pub(super) fn end_loan(&mut self) {
        if !self.lent {
            return;
        }
        let bytes = self.ram().pages() * PAGE_SIZE;
        let own = MachineMemory::new(bytes, self.memory.options()).map_err(failed(ACTION));
        let is_new = own.and_then(|own| self.use_memory(own));
        if let Err(error) = &is_new {
            log::error!("{error}");
        }
        if is_new.is_err() || self.life != Life::Awaiting {
            self.life = Life::GivenBack;
        }
        self.lent = is_new.is_err();
    }

    /// Everything uses `memory` from now on. No vCPU and no device may run.
    fn use_memory(&mut self, memory: MachineMemory) -> Result<(), MachineError> {
        let refused = |error: &dyn Display| failed(ACTION)(error.to_string());
        let slots = Arc::get_mut(&mut self.slots);
        let slots = slots.ok_or_else(|| refused(&"it is being migrated"))?;
        // No longer used by the old one, which is unmapped at the end.
        slots
            .replace(Arc::clone(memory.ram()))
            .map_err(|error| refused(&error))?;
        if let Some(balloon) = &self.balloon {
            balloon
                .set_memory(memory.ram())
                .map_err(|error| refused(&error))?;
        }
        if let Some(port) = &self.agent_port {
            port.set_memory(&memory);
        }
        let heartbeat = Heartbeat::new(Arc::clone(memory.own()));
        self.heartbeat = heartbeat.map_err(|error| refused(&error))?;
        self.memory = memory;
        Ok(())
    }
}
