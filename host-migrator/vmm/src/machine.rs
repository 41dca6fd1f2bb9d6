// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: memory, vCPUs and devices, and who may run it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use host_migrator::{
    DestinationMachine, DirtyLog, GuestRam, MachineError, RamRegion, SourceMachine, Trace,
};
use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use spec::bare::{MAX_VCPUS, MMIO_BYTES, MMIO_GPA};
use spec::trace::{Event, Role};

use crate::boot::{self, BootError, Guest};
use crate::cpuid;
use crate::description::{
    DeviceDescription, Differences, Host, MachineDescription, Trial, carried_msrs,
};
use crate::dirty_log::KvmDirtyLog;
use crate::event::MachineEvent;
use crate::heartbeat::Heartbeat;
use crate::huge_pages::HugePages;
use crate::io_bus::IoBus;
use crate::memory::{MachineMemory, MemoryError, MemoryOptions};
use crate::mmio::{MmioDevice, MmioSlot};
use crate::own_writes::OwnWritesLog;
use crate::serial::{self, Console, Output};
use crate::slots::MemorySlots;
use crate::state::{GuestKind, MachineState, PlatformState, Shape, StateError, VcpuState, regions};
use crate::vcpu::{VcpuError, Vcpus};
use crate::virtio::console::{ConsoleError, VirtioConsole};
use crate::virtio::{VhostUserBalloon, VirtioError};

/// What source and destination must agree on.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// How it is made.
    pub memory: MemoryOptions,
    /// vCPUs; at most [`MAX_VCPUS`].
    pub vcpus: u8,
    /// The socket of the balloon's vhost-user back end, if the machine has a balloon.
    pub balloon_socket: Option<PathBuf>,
    /// The socket that the agent's port is joined to, if the machine has one. Nobody need listen there.
    pub agent_socket: Option<PathBuf>,
    /// Where the machine records what it does, for tests.
    pub trace: Trace,
}

/// Where what the guest says goes.
pub struct Outlets {
    /// The serial console's output.
    pub console: Output,
    /// What happens to the guest.
    pub events: Sender<MachineEvent>,
}

impl fmt::Debug for Outlets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlets").finish_non_exhaustive()
    }
}

/// A machine that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// KVM is not there, or refused something.
    #[error("KVM: cannot {action}: {source}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No vCPU, or too many.
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    VcpuCount(u8),
    /// Its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Its balloon.
    #[error(transparent)]
    Balloon(#[from] VirtioError),
    /// Its agent's port.
    #[error(transparent)]
    AgentPort(#[from] ConsoleError),
    /// Its guest.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM does not say what the guest has.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A machine with its guest.
///
/// A new one is paused until [`Machine::start`]. One that waits for a migration runs once that is complete; one
/// that has been handed over never runs again.
#[derive(Debug)]
pub struct Machine {
    life: Life,
    /// What runs here; unknown before it has arrived.
    guest: Option<GuestKind>,
    /// The operator has not let the guest run yet: only [`Machine::start`] does. It goes with the guest.
    held: bool,
    /// What is to arrive here; `None` for a machine whose guest was started on it.
    awaited: Option<GuestKind>,
    /// Where it is tried whether that could run here.
    trial: Option<Trial>,
    /// The guest's needs, but for its devices; `None` before it has arrived.
    description: Option<MachineDescription>,
    trace: Trace,
    // Dropped in this order: first what runs, last what it runs on.
    vcpus: Vcpus,
    heartbeat: Heartbeat,
    /// Puts memory that has arrived on huge pages again.
    huge_pages: Option<HugePages>,
    balloon: Option<Arc<VhostUserBalloon>>,
    agent_port: Option<Arc<VirtioConsole>>,
    bus: Arc<IoBus>,
    slots: Arc<MemorySlots>,
    memory: MachineMemory,
    vm: Arc<VmFd>,
    kvm: Kvm,
    /// What guests are given as CPUID on this host.
    supported: CpuId,
    /// What they then see.
    seen: CpuId,
}

/// Whether the machine may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// It waits for the state of a guest.
    Awaiting,
    Paused,
    Running,
    /// The destination owns the guest, unless an operator decides otherwise.
    HandedOver,
}

/// The balloon's place: the same on both sides of a migration, for the guest goes on using it.
const BALLOON: MmioSlot = MmioSlot {
    gpa: MMIO_GPA,
    gsi: 5,
};
/// The place of the agent's port, likewise.
const AGENT_PORT: MmioSlot = MmioSlot {
    gpa: MMIO_GPA + MMIO_BYTES,
    gsi: 6,
};
/// Pages below the firmware's place that VMX needs for itself.
const TASK_STATE_GPA: usize = 0xfffb_d000;
const IDENTITY_MAP_GPA: u64 = 0xfffb_c000;

impl Machine {
    /// Makes a machine with `guest` on it.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn new(
        config: &MachineConfig,
        guest: &Guest,
        outlets: Outlets,
    ) -> Result<Self, SetupError> {
        let mut machine = Self::assemble(config, outlets)?;
        let balloon = machine.balloon.is_some().then_some(BALLOON);
        let agent_port = machine.agent_port.is_some().then_some(AGENT_PORT);
        let devices: Vec<MmioSlot> = balloon.into_iter().chain(agent_port).collect();
        let own = machine.memory.own();
        let kind = boot::boot(&machine.supported, own, &machine.vcpus, guest, &devices)?;
        machine.guest = Some(kind);
        machine.description = Some(machine.described(kind)?);
        machine.life = Life::Paused;
        Ok(machine)
    }

    /// Makes a machine for a `guest` that migrates to it. With `hold` it does not run the guest before
    /// [`Machine::start`].
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn incoming(
        config: &MachineConfig,
        guest: GuestKind,
        hold: bool,
        outlets: Outlets,
    ) -> Result<Self, SetupError> {
        let mut machine = Self::assemble(config, outlets)?;
        machine.held = hold;
        machine.awaited = Some(guest);
        let trial = Trial::on(new_vm(&machine.kvm)?).map_err(kvm_refused("make a vCPU"))?;
        machine.trial = Some(trial);
        Ok(machine)
    }

    fn assemble(config: &MachineConfig, outlets: Outlets) -> Result<Self, SetupError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus.into()) {
            return Err(SetupError::VcpuCount(config.vcpus));
        }
        let kvm = Kvm::new().map_err(kvm_refused("open /dev/kvm"))?;
        const CPUID: &str = "say what CPUID its guests see";
        let supported = cpuid::supported(&kvm).map_err(kvm_refused(CPUID))?;
        let vm = Arc::new(new_vm(&kvm)?);
        let memory = MachineMemory::new(config.memory_bytes, config.memory)?;
        let slots = MemorySlots::register(Arc::clone(&vm), Arc::clone(memory.ram()));
        let slots = slots.map_err(|source| SetupError::Kvm {
            action: "take the guest's memory, with a dirty log (Linux 5.0 or later)",
            source,
        })?;
        let console = new_console(&vm, outlets.console)?;
        let mut devices: Vec<(_, Arc<dyn MmioDevice>)> = Vec::new();
        let mut balloon = None;
        if let Some(socket) = &config.balloon_socket {
            let device = VhostUserBalloon::connect(socket, memory.ram(), &vm, BALLOON)?;
            devices.push((window(BALLOON), Arc::clone(&device) as _));
            balloon = Some(device);
        }
        let mut agent_port = None;
        if let Some(socket) = &config.agent_socket {
            let device = VirtioConsole::new(socket, &memory, &vm, AGENT_PORT)?;
            devices.push((window(AGENT_PORT), Arc::clone(&device) as _));
            agent_port = Some(device);
        }
        let bus = Arc::new(IoBus::new(console, devices));
        let vcpus = Vcpus::new(&vm, config.vcpus.into(), &bus, &outlets.events)?;
        let first = vcpus.lock_all().next();
        let first = first.ok_or(SetupError::VcpuCount(config.vcpus))?;
        let seen = cpuid::seen_on(&first, &supported).map_err(kvm_refused(CPUID))?;
        drop(first);
        let heartbeat = Heartbeat::new(Arc::clone(memory.own()));
        Ok(Self {
            life: Life::Awaiting,
            guest: None,
            held: false,
            awaited: None,
            trial: None,
            description: None,
            trace: config.trace.of(Role::Machine),
            vcpus,
            heartbeat: heartbeat.map_err(|source| SetupError::Kvm {
                action: "start a thread",
                source,
            })?,
            huge_pages: None,
            balloon,
            agent_port,
            bus,
            slots: Arc::new(slots),
            memory,
            vm,
            kvm,
            supported,
            seen,
        })
    }

    /// Runs the guest, also one that is held. Harmless if it runs.
    ///
    /// # Errors
    /// [`MachineError`] if there is no guest yet, it has ended, or another machine owns it.
    pub fn start(&mut self) -> Result<(), MachineError> {
        self.run_guest()?;
        self.held = false;
        Ok(())
    }

    fn run_guest(&mut self) -> Result<(), MachineError> {
        // The one way into the guest.
        match self.life {
            Life::Running => return self.vcpus.check_alive().map_err(failed("run the guest")),
            Life::Paused => {}
            Life::Awaiting => return Err(failed("run the guest")("none has arrived yet")),
            Life::HandedOver => {
                return Err(failed("run the guest")(
                    "it was handed over to the destination",
                ));
            }
        }
        self.vcpus.check_alive().map_err(failed("run the guest"))?;
        if let Some(balloon) = &self.balloon {
            balloon.resume();
        }
        if let Some(port) = &self.agent_port {
            port.resume();
        }
        if self.guest == Some(GuestKind::Bare) {
            self.heartbeat.run();
        }
        self.trace.record(Event::Run);
        self.vcpus.run().map_err(failed("run the guest"))?;
        self.life = Life::Running;
        Ok(())
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.memory.ram()
    }

    /// The files that hold the guest's memory, to map it elsewhere.
    ///
    /// # Errors
    /// [`io::Error`] if one cannot be duplicated.
    pub fn memory_files(&self) -> io::Result<Vec<RamRegion>> {
        self.memory.files()
    }

    /// The logs of all who write the guest's memory.
    pub fn dirty_logs(&self) -> Vec<Box<dyn DirtyLog>> {
        // A guest that leaves again needs no huge pages here.
        self.huge_pages.iter().for_each(HugePages::stop);
        let mut logs: Vec<Box<dyn DirtyLog>> = vec![
            Box::new(KvmDirtyLog::new(Arc::clone(&self.slots)).recorded(&self.trace)),
            Box::new(OwnWritesLog::new(Arc::clone(self.memory.own()))),
        ];
        logs.extend(self.balloon.as_ref().map(|balloon| balloon.dirty_log()));
        logs
    }

    /// What runs here; `None` before it has arrived.
    pub fn guest(&self) -> Option<GuestKind> {
        self.guest
    }

    /// An operator has decided that the guest, which was handed over, is here after all
    /// ([`OwnershipRecord::claim`](host_migrator::OwnershipRecord::claim)): it goes on here.
    ///
    /// # Errors
    /// [`MachineError`] if it cannot run; another call tries again.
    pub fn take_back(&mut self) -> Result<(), MachineError> {
        if self.life == Life::HandedOver {
            self.life = Life::Paused;
        }
        self.resume()
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.life == Life::Running
    }

    /// Whether the guest is held until [`Machine::start`]: here, or at the next host.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// The balloon, if the machine has one.
    pub fn balloon(&self) -> Option<&Arc<VhostUserBalloon>> {
        self.balloon.as_ref()
    }

    /// The devices, for typing on the console and for statistics.
    pub fn bus(&self) -> &Arc<IoBus> {
        &self.bus
    }

    /// After the return this process writes no guest memory.
    fn pause_own_writes(&self) {
        self.heartbeat.pause();
        if let Some(port) = &self.agent_port {
            port.stop();
        }
    }

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
            // One that awaits no guest is refused before.
            guest: self.awaited.unwrap_or(state.guest),
            ram: self.ram(),
            vcpus: self.vcpus.count(),
            balloon: self.balloon.is_some(),
            agent_port: self.agent_port.is_some(),
        })?;
        for (vcpu, state) in self.vcpus.lock_all().zip(&state.vcpus) {
            // The description that was compared was vCPU 0's, and this may be another's.
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
    /// Describes the machine, but for its devices; the vCPUs must be paused.
    fn described(&self, guest: GuestKind) -> Result<MachineDescription, StateError> {
        let vcpu = self.vcpus.lock_all().next().ok_or(StateError::Vcpus {
            found: 0,
            expected: 1,
        })?;
        MachineDescription::of(&self.kvm, &self.vm, &vcpu, guest, self.vcpus.count())
    }

    /// The devices, with the features that the guest uses or those that it is offered.
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
            // One that has ended cannot be migrated. It is not paused: it stays as it is.
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

    fn save(&mut self) -> Result<Vec<u8>, MachineError> {
        let state = self.save_state()?;
        state
            .to_bytes()
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
        match self.balloon.as_ref().and_then(|balloon| balloon.lost()) {
            Some(lost) => Err(failed("take a guest")(VirtioError::Lost(lost))),
            None => Ok(()),
        }
    }

    fn load(&mut self, state: &[u8]) -> Result<(), MachineError> {
        const ACTION: &str = "load the machine's state";
        if self.life != Life::Awaiting {
            return Err(failed(ACTION)("it has a guest already"));
        }
        let state = MachineState::from_bytes(state).map_err(failed(ACTION))?;
        self.load_state(&state).map_err(failed(ACTION))?;
        if let (Some(balloon), Some(state)) = (&self.balloon, &state.balloon) {
            balloon.load(state).map_err(failed(ACTION))?;
        }
        if let (Some(port), Some(state)) = (&self.agent_port, &state.agent_port) {
            port.load(state).map_err(failed(ACTION))?;
        }
        self.trial = None;
        self.description = Some(self.described(state.guest).map_err(failed(ACTION))?);
        self.guest = Some(state.guest);
        self.held |= state.held;
        self.life = Life::Paused;
        self.trace.record(Event::Loaded);
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.trace.record(Event::TakenOver);
        self.huge_pages =
            (self.memory.options().huge_pages).then(|| HugePages::restore(self.memory.ram()));
        if self.held { Ok(()) } else { self.run_guest() }
    }
}

/// The registers of the device at `slot`.
fn window(slot: MmioSlot) -> Range<u64> {
    slot.gpa..slot.gpa + MMIO_BYTES
}

/// A virtual machine with the interrupt controllers and the timer in the kernel.
fn new_vm(kvm: &Kvm) -> Result<VmFd, SetupError> {
    let vm = kvm.create_vm().map_err(kvm_refused("make a machine"))?;
    vm.set_tss_address(TASK_STATE_GPA)
        .map_err(kvm_refused("place the task state"))?;
    vm.set_identity_map_address(IDENTITY_MAP_GPA)
        .map_err(kvm_refused("place the identity map"))?;
    vm.create_irq_chip()
        .map_err(kvm_refused("make interrupt controllers"))?;
    let timer = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(timer).map_err(kvm_refused("make a timer"))?;
    Ok(vm)
}

fn new_console(vm: &VmFd, output: Output) -> Result<Console, SetupError> {
    let console = Console::new(output).map_err(|source| SetupError::Kvm {
        action: "make an eventfd",
        source,
    })?;
    vm.register_irqfd(console.interrupt(), serial::GSI)
        .map_err(kvm_refused("connect the console's interrupt"))?;
    Ok(console)
}

fn kvm_refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> SetupError {
    move |error| SetupError::Kvm {
        action,
        source: error.into(),
    }
}

/// Wraps any error as the engine wants it; for `map_err`.
fn failed<E: fmt::Display>(action: &'static str) -> impl Fn(E) -> MachineError {
    move |error| MachineError {
        action,
        reason: error.to_string(),
    }
}
