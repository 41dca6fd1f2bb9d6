// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The state of a machine besides its memory, for a migration. `sections.rs` makes sections of it.

pub mod clock;
mod exact;
mod platform;
pub mod registers;
mod sections;
pub mod vcpu;

use std::fmt;

use host_migrator::GuestRam;
use serde::{Deserialize, Serialize};

pub use self::exact::Exact;
pub use self::platform::PlatformState;
pub use self::sections::sections;
pub use self::vcpu::VcpuState;
use crate::serial::ConsoleState;
use crate::versioned::FormatError;
use crate::virtio::VirtioState;
use crate::virtio::console::ConsoleState as PortState;

/// The kind of guest that a machine runs. It decides what else the VMM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestKind {
    /// The bare-metal guest: the VMM stamps its heartbeat page.
    Bare,
    /// Linux.
    Linux,
}

impl fmt::Display for GuestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "bare",
            Self::Linux => "Linux",
        })
    }
}

/// The state of a paused machine.
#[derive(Clone, Debug)]
pub struct MachineState {
    /// What it runs.
    pub guest: GuestKind,
    /// First page and number of pages of each region of its memory.
    pub regions: Vec<(u64, u64)>,
    /// The vCPUs, by number.
    pub vcpus: Vec<VcpuState>,
    /// What all vCPUs share.
    pub platform: PlatformState,
    /// The serial console.
    pub console: ConsoleState,
    /// The balloon, if it has one.
    pub balloon: Option<VirtioState>,
    /// The agent's port, if it has one.
    pub agent_port: Option<PortState>,
    /// The guest is held until an operator lets it run; this also holds at the destination.
    pub held: bool,
}

/// The shape of a machine, which a state must fit.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// The kind of guest that it awaits.
    pub guest: GuestKind,
    /// The machine's memory.
    pub ram: &'a GuestRam,
    /// How many vCPUs it has.
    pub vcpus: usize,
    /// Whether it has a balloon.
    pub balloon: bool,
    /// Whether it has a port for an agent.
    pub agent_port: bool,
}

/// The state cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A section that cannot be read, or is of another version.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A section that is missing or too large.
    #[error(transparent)]
    Section(#[from] host_migrator::StateError),
    /// The state of a machine with other memory.
    #[error("the state belongs to a machine with other memory")]
    Memory,
    /// The state of another kind of guest.
    #[error("the state is that of a {found} guest, but this machine awaits a {expected} one")]
    Guest {
        /// In the state.
        found: GuestKind,
        /// What the machine awaits.
        expected: GuestKind,
    },
    /// A CPUID with features that this host does not have.
    #[error("the guest has {0}, but this host does not")]
    Cpuid(String),
    /// The state of a machine with more vCPUs, or fewer.
    #[error("the state has {found} vCPUs, but this machine has {expected}")]
    Vcpus {
        /// In the state.
        found: usize,
        /// In the machine.
        expected: usize,
    },
    /// A machine with a device and one without.
    #[error("the state is that of a machine {with} {device}, but this machine is not", with = if *.has { "with a" } else { "without a" })]
    Device {
        /// Which device.
        device: &'static str,
        /// Whether the state's machine has it.
        has: bool,
    },
    /// KVM refused it.
    #[error("KVM refuses the {part}: {source}")]
    Kvm {
        /// Which part.
        part: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A model-specific register that cannot be written and has another value here.
    #[error("{} cannot be set to {wanted:#x} here", registers::name(*.index))]
    Msr {
        /// Its number.
        index: u32,
        /// The value.
        wanted: u64,
    },
    /// A time stamp counter that has another frequency here and cannot be scaled.
    #[error(
        "the guest's time stamp counter runs at {wanted} kHz, but here it would run at {found} kHz"
    )]
    TscFrequency {
        /// At the source.
        wanted: u32,
        /// Here.
        found: u32,
    },
    /// The console's state.
    #[error(transparent)]
    Console(#[from] crate::serial::ConsoleStateError),
}

impl MachineState {
    /// Checks that the state fits a machine of `shape`.
    ///
    /// # Errors
    /// [`StateError`] names what does not fit.
    pub fn check(&self, shape: &Shape<'_>) -> Result<(), StateError> {
        if self.guest != shape.guest {
            return Err(StateError::Guest {
                found: self.guest,
                expected: shape.guest,
            });
        }
        if self.regions != regions(shape.ram) {
            return Err(StateError::Memory);
        }
        if self.vcpus.len() != shape.vcpus {
            return Err(StateError::Vcpus {
                found: self.vcpus.len(),
                expected: shape.vcpus,
            });
        }
        for (device, has, wanted) in [
            ("balloon", self.balloon.is_some(), shape.balloon),
            (
                "port for an agent",
                self.agent_port.is_some(),
                shape.agent_port,
            ),
        ] {
            if has != wanted {
                return Err(StateError::Device { device, has });
            }
        }
        Ok(())
    }
}

/// The regions of `ram` as they are in a state.
pub fn regions(ram: &GuestRam) -> Vec<(u64, u64)> {
    let pair = |region: &spec::PageRange| (region.first(), region.count());
    ram.regions().iter().map(pair).collect()
}

/// Wraps KVM's error about a part of the state; for `map_err`.
pub(crate) fn refused(part: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |error| StateError::Kvm {
        part,
        source: error.into(),
    }
}
