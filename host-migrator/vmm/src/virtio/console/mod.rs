// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio console with one named port, for the guest's agent (virtio 1.2, section 5.3).
//!
//! The port is connected to a unix socket on which the balloon device listens. The guest never waits for the socket: the
//! port is closed while nobody listens, and opens when somebody does.
//!
//! | module | what |
//! |---|---|
//! | [`control`] | messages about the port, and the driver's state |
//! | `port`, `ring` | moves bytes between queues and socket |
//! | `device` | registers, and the life of the port |
//! | `worker` | the thread, and the connection to the socket |
//! | `state` | the state for a migration |
//!
//! The console writes to guest memory only through [`crate::memory::OwnMemory`], whose log
//! ([`crate::own_writes::OwnWritesLog`]) is one of the migration's dirty logs. A migration carries the driver's state and
//! the positions of its queues, but not the connection. The driver is told that the host's end was closed, and that it is
//! open again when the port is connected to the destination's socket. Bytes in the source's socket are lost; the
//! protocol ([`spec::agent`]) finds the next frame.

pub mod control;
mod device;
mod port;
mod ring;
mod state;
mod worker;

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::VmFd;

pub use state::ConsoleState;

use super::register_kick;
use super::state::StateError;
use crate::memory::MachineMemory;
use crate::mmio::{MmioDevice, MmioSlot};
use device::Device;
use worker::Worker;

/// The console could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// A state cannot be loaded into a device that a driver uses already.
    #[error("a state can only be loaded into a console that no driver has set up")]
    InUse,
    /// The operating system refused something.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// KVM refused something.
    #[error("KVM cannot {action}: {source}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The state cannot be saved while the queues may run.
    #[error("the console's state cannot be saved before it is stopped")]
    NotStopped,
    /// A queue cannot run.
    #[error("the console's queue cannot run: {0}")]
    Queue(#[from] virtio_queue::Error),
    /// The state of another device does not fit this one.
    #[error("the console's state does not fit: {0}")]
    State(#[from] StateError),
}

/// A console on virtio-mmio with one port, named [`control::PORT_NAME`].
#[derive(Debug)]
pub struct VirtioConsole {
    device: Arc<Device>,
    _worker: Worker,
}

impl VirtioConsole {
    /// Makes a console for the guest in `memory`. Its port connects to `socket` as soon as somebody listens there. The
    /// console runs after [`VirtioConsole::resume`]. Its kicks and interrupts are registered with `vm`, which has an
    /// interrupt controller already.
    ///
    /// # Errors
    /// [`ConsoleError`] if the system or KVM refuses something.
    pub fn new(
        socket: &Path,
        memory: &MachineMemory,
        vm: &VmFd,
        slot: MmioSlot,
    ) -> Result<Arc<Self>, ConsoleError> {
        let failed = |action| move |source| ConsoleError::Io { action, source };
        let refused = |action| move |source| ConsoleError::Kvm { action, source };
        let device = Arc::new(Device::new(memory).map_err(failed("make an eventfd"))?);
        for queue in 0..port::QUEUES as u32 {
            register_kick(vm, slot, queue, &device.kick)
                .map_err(refused("register the agent port's kicks"))?;
        }
        vm.register_irqfd(&device.interrupt, slot.gsi)
            .map_err(refused("register the agent port's interrupt"))?;
        let worker = Worker::start(&device, socket.to_owned());
        Ok(Arc::new(Self {
            device,
            _worker: worker.map_err(failed("start a thread"))?,
        }))
    }

    /// From now on the guest's memory is `memory`. The console must not run, nor have a driver.
    pub fn set_memory(&self, memory: &MachineMemory) {
        self.device.set_memory(memory);
    }

    /// Stops the queues. After the return the console does not access guest memory. Does nothing if they are stopped.
    pub fn stop(&self) {
        self.device.stop();
    }

    /// Runs the queues. After [`VirtioConsole::load`] the guest is also interrupted, so the interrupt controllers must have
    /// their state by then. Does nothing if the queues run.
    pub fn resume(&self) {
        self.device.resume();
    }

    /// The device's state, between [`VirtioConsole::stop`] and [`VirtioConsole::resume`].
    ///
    /// # Errors
    /// [`ConsoleError::NotStopped`].
    pub fn save(&self) -> Result<ConsoleState, ConsoleError> {
        self.device.save()
    }

    /// Loads the state from [`VirtioConsole::save`] of another device. It runs after [`VirtioConsole::resume`].
    ///
    /// # Errors
    /// [`ConsoleError::State`] names what does not fit; [`ConsoleError::InUse`] if a driver uses the device already.
    pub fn load(&self, state: &ConsoleState) -> Result<(), ConsoleError> {
        self.device.load(state)
    }

    /// The features that the guest's driver uses, and the features that it is offered.
    pub fn features(&self) -> (u64, u64) {
        self.device.features()
    }

    /// Invalid accesses of the guest, and buffers that could not be used.
    pub fn ignored_accesses(&self) -> u64 {
        self.device.ignored()
    }
}

impl MmioDevice for VirtioConsole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write(offset, data);
    }
}
