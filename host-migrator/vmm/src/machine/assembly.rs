// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Making a machine: its configuration, its parts, and the errors.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use host_migrator::Trace;
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Kvm, VmFd};
use spec::bare::{MAX_VCPUS, MMIO_BYTES, MMIO_GPA};
use spec::trace::Role;

use super::{Life, Machine};
use crate::boot::{self, BootError, Guest};
use crate::cpuid;
use crate::description::Trial;
use crate::dirty_ring::DirtyRings;
use crate::event::MachineEvent;
use crate::heartbeat::Heartbeat;
use crate::io_bus::IoBus;
use crate::memory::{MachineMemory, MemoryError, MemoryOptions};
use crate::mmio::{MmioDevice, MmioSlot};
use crate::serial::{self, Console, Output};
use crate::slots::MemorySlots;
use crate::state::{GuestKind, StateError};
use crate::vcpu::{VcpuError, Vcpus};
use crate::virtio::console::{ConsoleError, VirtioConsole};
use crate::virtio::{VhostUserBalloon, VirtioError};

/// The configuration of a machine. Source and destination must have the same.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// How guest memory is made.
    pub memory: MemoryOptions,
    /// vCPUs; at most [`MAX_VCPUS`].
    pub vcpus: u8,
    /// The socket of the balloon's vhost-user back end, if the machine has a balloon.
    pub balloon_socket: Option<PathBuf>,
    /// The socket that the agent's port connects to, if the machine has such a port. Nobody needs to listen there yet.
    pub agent_socket: Option<PathBuf>,
    /// How KVM logs the vCPUs' writes. The other side may have another.
    pub dirty_log: DirtyLogKind,
    /// The machine's trace, for tests.
    pub trace: Trace,
}

/// How KVM logs the vCPUs' writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirtyLogKind {
    /// In a bitmap of each memory slot.
    #[default]
    Bitmap,
    /// In a ring of each vCPU, of at most so many entries, a power of two (see [`RING_ENTRIES`](crate::dirty_ring::RING_ENTRIES)).
    Ring(u32),
}

/// Where the guest's output and events go.
pub struct Outlets {
    /// The serial console's output.
    pub console: Output,
    /// The guest's events.
    pub events: Sender<MachineEvent>,
}

impl fmt::Debug for Outlets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlets").finish_non_exhaustive()
    }
}

/// The machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// KVM is not available, or refused something.
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
    /// KVM does not describe the guest's machine.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The balloon's place. It is the same on both sides of a migration, because the guest goes on using it.
const BALLOON: MmioSlot = MmioSlot {
    gpa: MMIO_GPA,
    gsi: 5,
};
/// The place of the agent's port, likewise.
const AGENT_PORT: MmioSlot = MmioSlot {
    gpa: MMIO_GPA + MMIO_BYTES,
    gsi: 6,
};
/// Pages below the firmware's place that VMX needs.
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

    /// Makes a machine for a `guest` that migrates to it. With `hold` the guest does not run before [`Machine::start`].
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
        let vm = new_vm(&machine.kvm)?;
        add_chips(&vm)?;
        machine.trial = Some(Trial::on(vm).map_err(kvm_refused("make a vCPU"))?);
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
        let ram = || Arc::clone(memory.ram());
        let (slots, rings) = match config.dirty_log {
            DirtyLogKind::Bitmap => {
                let slots = MemorySlots::register(Arc::clone(&vm), ram());
                let slots = slots.map_err(|source| SetupError::Kvm {
                    action: "take the guest's memory, with a dirty log (Linux 5.0 or later)",
                    source,
                })?;
                (slots, None)
            }
            DirtyLogKind::Ring(entries) => {
                let slots = MemorySlots::for_rings(Arc::clone(&vm), ram());
                let slots = slots.map_err(|source| SetupError::Kvm {
                    action: "take the guest's memory",
                    source,
                })?;
                let vcpus = config.vcpus.into();
                let (pages, trace) = (slots.pages(), config.trace.of(Role::Machine));
                let rings = DirtyRings::enable(Arc::clone(&vm), entries, vcpus, pages, &trace);
                let rings = rings.map_err(|source| SetupError::Kvm {
                    action: "log written pages in rings (--dirty-log bitmap needs none)",
                    source,
                })?;
                (slots, Some(Arc::new(rings)))
            }
        };
        // After the memory: Linux 6.18 makes a first memory slot wait 4 to 9 ms for what the chips have begun.
        add_chips(&vm)?;
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
        let vcpus = Vcpus::new(
            &vm,
            config.vcpus.into(),
            &bus,
            &outlets.events,
            rings.as_ref(),
        )?;
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
            rings,
            memory,
            lent: false,
            is_missing: false,
            vm,
            kvm,
            supported,
            seen,
        })
    }
}

/// The registers of the device at `slot`.
fn window(slot: MmioSlot) -> Range<u64> {
    slot.gpa..slot.gpa + MMIO_BYTES
}

/// A virtual machine without memory and chips.
fn new_vm(kvm: &Kvm) -> Result<VmFd, SetupError> {
    let vm = kvm.create_vm().map_err(kvm_refused("make a machine"))?;
    vm.set_tss_address(TASK_STATE_GPA)
        .map_err(kvm_refused("place the task state"))?;
    vm.set_identity_map_address(IDENTITY_MAP_GPA)
        .map_err(kvm_refused("place the identity map"))?;
    Ok(vm)
}

/// Gives `vm`, which has no vCPUs yet, interrupt controllers and a timer in the kernel.
fn add_chips(vm: &VmFd) -> Result<(), SetupError> {
    vm.create_irq_chip()
        .map_err(kvm_refused("make interrupt controllers"))?;
    let timer = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(timer).map_err(kvm_refused("make a timer"))
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
