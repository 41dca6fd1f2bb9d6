// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine: memory, vCPUs and devices, and who may run it.
//!
//! | module | what it is |
//! |---|---|
//! | `assembly` | making a machine |
//! | `lent` | another process's memory instead of its own |
//! | `migration` | saving, loading and handing over its guest |

mod assembly;
mod lent;
mod migration;

use std::fmt;
use std::io;
use std::sync::Arc;

use host_migrator::{DirtyLog, GuestRam, MachineError, RamRegion, SourceMachine, Trace};
use kvm_bindings::CpuId;
use kvm_ioctls::{Kvm, VmFd};
use spec::trace::Event;

pub use self::assembly::{DirtyLogKind, MachineConfig, Outlets, SetupError};
use crate::description::{MachineDescription, Trial};
use crate::dirty_log::KvmDirtyLog;
use crate::dirty_ring::{DirtyRings, RingDirtyLog};
use crate::heartbeat::Heartbeat;
use crate::huge_pages::HugePages;
use crate::io_bus::IoBus;
use crate::memory::MachineMemory;
use crate::own_writes::OwnWritesLog;
use crate::slots::MemorySlots;
use crate::state::GuestKind;
use crate::throttle::VcpuThrottle;
use crate::vcpu::Vcpus;
use crate::vcpu_times::VcpuWatch;
use crate::virtio::VhostUserBalloon;
use crate::virtio::console::VirtioConsole;

/// A machine with its guest.
///
/// A new machine is paused until [`Machine::start`]. A machine that waits for a guest runs when the migration is
/// complete. A machine whose guest was handed over never runs again.
#[derive(Debug)]
pub struct Machine {
    life: Life,
    /// The kind of guest; `None` before it has arrived.
    guest: Option<GuestKind>,
    /// The guest is held until an operator lets it run ([`Machine::start`]). This is part of the migrated state.
    held: bool,
    /// The kind of guest that is awaited; `None` for a machine whose guest was started on it.
    awaited: Option<GuestKind>,
    /// The machine that checks whether the awaited guest can run here.
    trial: Option<Trial>,
    /// What the guest needs, except for its devices; `None` before it has arrived.
    description: Option<MachineDescription>,
    trace: Trace,
    // Dropped in this order: what uses other parts comes before them.
    vcpus: Vcpus,
    heartbeat: Heartbeat,
    /// Gives an arrived guest its huge pages again.
    huge_pages: Option<HugePages>,
    balloon: Option<Arc<VhostUserBalloon>>,
    agent_port: Option<Arc<VirtioConsole>>,
    bus: Arc<IoBus>,
    slots: Arc<MemorySlots>,
    /// The dirty log, if it is not a bitmap of each slot.
    rings: Option<Arc<DirtyRings>>,
    memory: MachineMemory,
    /// The memory is that of the source, on this host.
    lent: bool,
    /// Pages of the memory may be missing. The balloon's back end, which cannot see that, does not run.
    is_missing: bool,
    vm: Arc<VmFd>,
    kvm: Kvm,
    /// The CPUID that guests are given on this host.
    supported: CpuId,
    /// The CPUID that guests then see.
    seen: CpuId,
}

/// Whether the machine may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// The machine waits for the state of a guest.
    Awaiting,
    Paused,
    Running,
    /// The destination owns the guest, unless an operator decides otherwise.
    HandedOver,
    /// The guest that was loaded stays at the source, and so does its memory.
    GivenBack,
}

impl Machine {
    /// Runs the guest, even if it is held. Does nothing if the guest runs.
    ///
    /// # Errors
    /// [`MachineError`] if there is no guest yet, it has ended, or another machine owns it.
    pub fn start(&mut self) -> Result<(), MachineError> {
        self.run_guest()?;
        self.held = false;
        Ok(())
    }

    fn run_guest(&mut self) -> Result<(), MachineError> {
        // Every way to run the guest comes through here.
        match self.life {
            Life::Running => return self.vcpus.check_alive().map_err(failed("run the guest")),
            Life::Paused => {}
            Life::Awaiting => return Err(failed("run the guest")("none has arrived yet")),
            Life::HandedOver => {
                return Err(failed("run the guest")(
                    "it was handed over to the destination",
                ));
            }
            Life::GivenBack => {
                return Err(failed("run the guest")("it stays at the source"));
            }
        }
        self.vcpus.check_alive().map_err(failed("run the guest"))?;
        if let Some(balloon) = self.balloon.as_ref().filter(|_| !self.is_missing) {
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

    /// The dirty logs of everything that writes to guest memory.
    pub fn dirty_logs(&self) -> Vec<Box<dyn DirtyLog>> {
        // The guest is leaving, so it needs no huge pages here.
        self.huge_pages.iter().for_each(HugePages::stop);
        let mut logs: Vec<Box<dyn DirtyLog>> = vec![
            self.log_of_vcpus(&self.trace),
            Box::new(OwnWritesLog::new(Arc::clone(self.memory.own()))),
        ];
        logs.extend(self.balloon.as_ref().map(|balloon| balloon.dirty_log()));
        logs
    }

    /// The dirty log of the vCPUs alone, to measure how fast they write. KVM has only one: it must not be on while
    /// [`Machine::dirty_logs`] are used. No trace has it.
    pub fn vcpu_dirty_log(&self) -> Box<dyn DirtyLog> {
        self.log_of_vcpus(&Trace::default())
    }

    fn log_of_vcpus(&self, trace: &Trace) -> Box<dyn DirtyLog> {
        let slots = Arc::clone(&self.slots);
        match &self.rings {
            None => Box::new(KvmDirtyLog::new(slots).recorded(trace)),
            Some(rings) => {
                let rings = Arc::clone(rings);
                Box::new(RingDirtyLog::new(rings, slots).recorded(trace))
            }
        }
    }

    /// The vCPUs' dirty rings, if the machine has them.
    pub fn dirty_rings(&self) -> Option<&Arc<DirtyRings>> {
        self.rings.as_ref()
    }

    /// What slows the guest down, for one migration at a time.
    pub fn throttle(&self) -> VcpuThrottle {
        self.vcpus.throttle()
    }

    /// Shows what keeps the guest's vCPUs from running.
    pub fn watch(&self) -> VcpuWatch {
        self.vcpus.watch()
    }

    /// The kind of guest; `None` before it has arrived.
    pub fn guest(&self) -> Option<GuestKind> {
        self.guest
    }

    /// Lets the guest, which was handed over, run on here, because an operator has decided that it belongs to this machine
    /// ([`OwnershipRecord::claim`](host_migrator::OwnershipRecord::claim)).
    ///
    /// # Errors
    /// [`MachineError`] if it cannot run. It can be tried again.
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

    /// Whether the guest is held until [`Machine::start`], here or on the next host.
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

    /// After the return this process does not write to guest memory.
    fn pause_own_writes(&self) {
        self.heartbeat.pause();
        if let Some(port) = &self.agent_port {
            port.stop();
        }
    }
}

/// Wraps any error as a [`MachineError`]; for `map_err`.
fn failed<E: fmt::Display>(action: &'static str) -> impl Fn(E) -> MachineError {
    move |error| MachineError {
        action,
        reason: error.to_string(),
    }
}
