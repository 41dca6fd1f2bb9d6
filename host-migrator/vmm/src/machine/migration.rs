// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrating a machine's guest: the engine's traits for the machines of source and destination.

use host_migrator::paging::Mapping;
use host_migrator::{
    DestinationMachine, MachineError, MachineState as Sections, RamRegion, SourceMachine,
};
use spec::trace::Event;

use super::{Life, Machine, failed};
use crate::cpuid;
use crate::description::{DeviceDescription, Differences, Host, MachineDescription, carried_msrs};
use crate::huge_pages::HugePages;
use crate::state::{GuestKind, MachineState, PlatformState, Shape, StateError, VcpuState, regions};
use crate::virtio::VirtioError;

impl Machine {
    fn save_state(&self) -> Result<MachineState, MachineError> {
        const ACTION: &str = "save the machine's state";
        let (Life::Paused, Some(guest)) = (self.life, self.guest) else {
            return Err(failed(ACTION)("it is not paused"));
        };
        self.vcpus.check_alive().map_err(failed(ACTION))?;
        let msrs = carried_msrs(&self.kvm).map_err(failed(ACTION))?;
        let vcpus = self
            .vcpus
            .lock_all()
            .map(|vcpu| VcpuState::save(&self.vm, &vcpu, &msrs));
        let balloon = self.balloon.as_ref().map(|balloon| balloon.save());
        let agent_port = self.agent_port.as_ref().map(|port| port.save());
        Ok(MachineState {
            guest,
            regions: regions(self.ram()),
            vcpus: vcpus.collect::<Result<_, _>>().map_err(failed(ACTION))?,
            platform: PlatformState::save(&self.vm).map_err(failed(ACTION))?,
            console: self.bus.console().save(),
            balloon: balloon.transpose().map_err(failed(ACTION))?,
            agent_port: agent_port.transpose().map_err(failed(ACTION))?,
            held: self.held,
        })
    }

    fn load_state(&self, state: &MachineState) -> Result<(), StateError> {
        state.check(&Shape {
            // A machine that awaits no guest was refused before.
            guest: self.awaited.unwrap_or(state.guest),
            ram: self.ram(),
            vcpus: self.vcpus.count(),
            balloon: self.balloon.is_some(),
            agent_port: self.agent_port.is_some(),
        })?;
        for (vcpu, state) in self.vcpus.lock_all().zip(&state.vcpus) {
            // The description has only the CPUID of vCPU 0, so check that of each vCPU.
            let lacking = cpuid::lacking(&state.cpuid(), self.seen.as_slice());
            if !lacking.is_empty() {
                return Err(StateError::Cpuid(Differences(lacking).to_string()));
            }
            state.load(&self.vm, &vcpu)?;
        }
        state.platform.load(&self.vm)?;
        self.bus.console().load(&state.console)?;
        Ok(())
    }
}

impl Machine {
    /// Describes the machine without its devices. The vCPUs must be paused.
    pub(super) fn described(&self, guest: GuestKind) -> Result<MachineDescription, StateError> {
        let vcpu = self.vcpus.lock_all().next().ok_or(StateError::Vcpus {
            found: 0,
            expected: 1,
        })?;
        MachineDescription::of(&self.kvm, &self.vm, &vcpu, guest, self.vcpus.count())
    }

    /// The devices. `which` chooses from each device's used and offered features.
    fn devices(&self, which: impl Fn((u64, u64)) -> u64) -> Vec<DeviceDescription> {
        let balloon = self.balloon.as_ref().map(|device| device.features());
        let port = self.agent_port.as_ref().map(|device| device.features());
        [("balloon", balloon), ("port for an agent", port)]
            .into_iter()
            .filter_map(|(name, features)| {
                Some(DeviceDescription {
                    name: name.into(),
                    features: which(features?),
                })
            })
            .collect()
    }

    /// Gives the guest, all of whose memory has arrived, its huge pages again.
    fn restore_huge_pages(&mut self) {
        // Lent memory has the pages that it had.
        let restores = self.memory.options().huge_pages && !self.lent;
        self.huge_pages = restores.then(|| HugePages::restore(self.memory.ram()));
    }

    /// Checks that no device is lost.
    fn check_devices(&self) -> Result<(), MachineError> {
        match self.balloon.as_ref().and_then(|balloon| balloon.lost()) {
            Some(lost) => Err(failed("take a guest")(VirtioError::Lost(lost))),
            None => Ok(()),
        }
    }
}

impl SourceMachine for Machine {
    fn describe(&mut self) -> Result<Vec<u8>, MachineError> {
        const ACTION: &str = "describe the machine";
        let Some(description) = &self.description else {
            return Err(failed(ACTION)("no guest has arrived yet"));
        };
        let description = MachineDescription {
            devices: self.devices(|(used, _)| used),
            ..description.clone()
        };
        description.to_bytes().map_err(failed(ACTION))
    }

    fn stop_vcpus(&mut self) -> Result<(), MachineError> {
        if self.life == Life::Running {
            self.vcpus.pause().map_err(failed("pause the guest"))?;
            // A guest that has ended cannot be migrated. It is not paused and stays as it is.
            (self.vcpus.check_alive()).map_err(failed("pause the guest"))?;
            self.pause_own_writes();
            self.life = Life::Paused;
            self.trace.record(Event::Stopped);
        }
        Ok(())
    }

    fn stop_devices(&mut self) -> Result<(), MachineError> {
        match &self.balloon {
            Some(balloon) => balloon.stop().map_err(failed("stop the balloon's rings")),
            None => Ok(()),
        }
    }

    fn save(&mut self) -> Result<Sections, MachineError> {
        let state = self.save_state()?;
        state
            .to_sections()
            .map_err(failed("write the machine's state"))
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        if self.held && self.life == Life::Paused {
            return Ok(());
        }
        self.run_guest()
    }

    fn hand_over(&mut self) {
        self.life = Life::HandedOver;
        self.pause_own_writes();
    }
}

impl DestinationMachine for Machine {
    fn judge(&mut self, description: &[u8]) -> Result<(), MachineError> {
        const ACTION: &str = "take this guest, because its machine and this one differ";
        let (Life::Awaiting, Some(guest), Some(trial)) = (self.life, self.awaited, &self.trial)
        else {
            return Err(failed("take a guest")("there is one here already"));
        };
        self.check_devices()?;
        let description =
            MachineDescription::from_bytes(description).map_err(failed("take this guest"))?;
        let host = Host {
            guest,
            vcpus: self.vcpus.count(),
            devices: self.devices(|(_, offered)| offered),
            cpuid: self.seen.as_slice(),
            kvm: &self.kvm,
            trial,
        };
        let found = host
            .differences(&description)
            .map_err(failed("try the guest's machine"))?;
        if found.0.is_empty() {
            Ok(())
        } else {
            Err(failed(ACTION)(found))
        }
    }

    fn check(&mut self) -> Result<(), MachineError> {
        self.check_devices()
    }

    fn take_memory(&mut self, memory: Vec<RamRegion>) -> Result<(), MachineError> {
        self.lend(memory)
    }

    fn give_memory_back(&mut self) {
        self.end_loan();
    }

    fn restoring(&mut self) {
        self.trace.record(Event::Restoring);
    }

    fn load(&mut self, sections: &mut Sections) -> Result<(), MachineError> {
        const ACTION: &str = "load the machine's state";
        if self.life != Life::Awaiting {
            return Err(failed(ACTION)("it has a guest already"));
        }
        let state = MachineState::take_from(sections).map_err(failed(ACTION))?;
        sections.finish()?;
        self.load_state(&state).map_err(failed(ACTION))?;
        if let (Some(balloon), Some(state)) = (&self.balloon, &state.balloon) {
            balloon.load(state).map_err(failed(ACTION))?;
        }
        if let (Some(port), Some(state)) = (&self.agent_port, &state.agent_port) {
            port.load(state).map_err(failed(ACTION))?;
        }
        if let Some(trial) = self.trial.take() {
            trial.end();
        }
        self.description = Some(self.described(state.guest).map_err(failed(ACTION))?);
        self.guest = Some(state.guest);
        self.held |= state.held;
        self.life = Life::Paused;
        self.trace.record(Event::Loaded);
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.trace.record(Event::TakenOver);
        if !self.is_missing {
            self.restore_huge_pages();
        }
        if self.held { Ok(()) } else { self.run_guest() }
    }

    fn memory_will_be_missing(&mut self) -> Result<Vec<Mapping>, MachineError> {
        if let Some(balloon) = &self.balloon {
            // A back end that takes the place of this one stays stopped, too.
            balloon.stop().map_err(failed("stop the balloon's rings"))?;
        }
        self.is_missing = true;
        // The guest's, and the one for writes of the devices in this process.
        let mut mappings = Mapping::all_of(self.memory.ram().memory());
        mappings.extend(Mapping::all_of(self.memory.own()));
        Ok(mappings)
    }

    fn memory_is_there(&mut self) {
        self.is_missing = false;
        self.restore_huge_pages();
        if let (Some(balloon), Life::Running) = (&self.balloon, self.life) {
            balloon.resume();
        }
    }
}
