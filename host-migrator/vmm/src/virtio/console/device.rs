// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console device: the guest's accesses, and the life of the port behind them.
//!
//! There are two locks, always taken in this order: that of the port, held for a turn of bounded length, and that of the
//! registers, held for a moment.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use host_migrator::GuestRam;
use parking_lot::Mutex;
use spec::balloon::CONFIG_SIZE;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vmm_sys_util::eventfd::EventFd;

use super::ConsoleError;
use super::control::PortState;
use super::port::{Port, QUEUES, Turn};
use super::ring::DriverRing;
use super::state::ConsoleState;
use crate::memory::{MachineMemory, OwnMemory};
use crate::virtio::device::signal;
use crate::virtio::new_event;
use crate::virtio::queue::Ring;
use crate::virtio::state::{Fit, VirtioState};
use crate::virtio::transport::{DeviceType, Effect, MAX_QUEUES, Transport};

const STATUS: u64 = reg::VIRTIO_MMIO_STATUS as u64;
const QUEUE_READY: u64 = reg::VIRTIO_MMIO_QUEUE_READY as u64;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

const CONSOLE: DeviceType = DeviceType {
    id: VIRTIO_ID_CONSOLE,
    driver_words: &[],
};
/// Ports have names, and messages about them (VIRTIO_CONSOLE_F_MULTIPORT).
const F_MULTIPORT: u32 = 1;
const FEATURES: u64 = 1 << F_MULTIPORT | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_F_VERSION_1;
/// Offset of `max_nr_ports` in the configuration space (virtio 1.2, section 5.3.4).
const MAX_PORTS: usize = 4;

/// The guest's memory.
#[derive(Clone, Debug)]
struct Memory {
    ram: Arc<GuestRam>,
    /// Every write through it is logged.
    own: Arc<OwnMemory>,
}

impl Memory {
    fn of(memory: &MachineMemory) -> Self {
        Self {
            ram: Arc::clone(memory.ram()),
            own: Arc::clone(memory.own()),
        }
    }
}

/// What the vCPUs and the port's thread share.
#[derive(Debug)]
pub struct Device {
    port: Mutex<Port>,
    transport: Mutex<Transport>,
    memory: Mutex<Memory>,
    /// Whether the device may access guest memory.
    running: AtomicBool,
    /// Whether a state was loaded and the guest has not run since.
    loaded: AtomicBool,
    /// Wakes the thread: the guest has done something, or the device's state has changed.
    pub kick: EventFd,
    pub interrupt: EventFd,
}

impl Device {
    /// A device in its state after power-on. It does not run yet.
    pub fn new(memory: &MachineMemory) -> io::Result<Self> {
        let mut config = [0; CONFIG_SIZE];
        config[MAX_PORTS] = 1;
        Ok(Self {
            port: Mutex::default(),
            transport: Mutex::new(Transport::new(CONSOLE, FEATURES, QUEUES, config)),
            memory: Mutex::new(Memory::of(memory)),
            running: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
            kick: new_event()?,
            interrupt: new_event()?,
        })
    }

    /// From now on the guest's memory is `memory`. The device must not run, nor have a driver.
    pub fn set_memory(&self, memory: &MachineMemory) {
        *self.memory.lock() = Memory::of(memory);
    }

    fn memory(&self) -> Memory {
        self.memory.lock().clone()
    }

    /// The guest reads.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.lock().read(offset, data);
    }

    /// The guest writes.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            STATUS | QUEUE_READY => self.write_control(offset, data),
            CONFIG.. => {
                // No field belongs to the driver, so this only counts the access.
                let _ = self.transport.lock().config_write(offset, data.len());
            }
            _ => {
                let effect = self.transport.lock().write(offset, data);
                // The usual way of a kick is KVM's ioeventfd; this is the way without.
                if let Effect::Notify(_) = effect {
                    signal(&self.kick);
                }
            }
        }
    }

    /// The features that the guest's driver uses, and the features that it is offered.
    pub fn features(&self) -> (u64, u64) {
        let transport = self.transport.lock();
        (transport.accepted(), transport.offered())
    }

    /// Accesses of the guest that were ignored, and buffers that could not be used.
    pub fn ignored(&self) -> u64 {
        let bad_buffers = self.port.lock().bad_buffers();
        bad_buffers + self.transport.lock().ignored()
    }

    /// Stops. After the return the device does not access guest memory.
    pub fn stop(&self) {
        // First, so that no further turn begins. Then wait for the end of the current turn.
        self.running.store(false, Ordering::SeqCst);
        drop(self.port.lock());
    }

    /// Goes on.
    pub fn resume(&self) {
        self.running.store(true, Ordering::SeqCst);
        if self.loaded.swap(false, Ordering::Relaxed) {
            // Makes the guest check its queues, in case an interrupt was on its way when the source's state was saved.
            signal(&self.interrupt);
        }
        signal(&self.kick);
    }

    /// The state of a device that is stopped.
    pub fn save(&self) -> Result<ConsoleState, ConsoleError> {
        let port = self.port.lock();
        if self.running.load(Ordering::SeqCst) {
            return Err(ConsoleError::NotStopped);
        }
        let (positions, state, taken) = port.positions();
        let mut bases = [0; MAX_QUEUES];
        bases[..QUEUES].copy_from_slice(&positions);
        let transport = self.transport.lock();
        Ok(ConsoleState {
            virtio: VirtioState {
                registers: *transport.registers(),
                config: transport.config(),
                bases,
                back_end: None,
                back_end_lost: false,
            },
            port: state,
            taken,
        })
    }

    /// Loads the state of another device.
    pub fn load(&self, state: &ConsoleState) -> Result<(), ConsoleError> {
        let mut port = self.port.lock();
        let mut transport = self.transport.lock();
        if port.in_use() || transport.registers().status != 0 {
            return Err(ConsoleError::InUse);
        }
        let checked = state.virtio.check(&Fit {
            offered: transport.offered(),
            queue_count: QUEUES,
            device_state: false,
            ram: &self.memory().ram,
        })?;
        port.start(running(&checked.rings)?, state.port, state.taken);
        // The configuration space is constant.
        transport.load(state.virtio.registers);
        self.loaded.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Moves bytes that can be moved; `None` while the device is stopped.
    pub fn turn(&self) -> Option<Pending> {
        let mut port = self.port.lock();
        if !self.running.load(Ordering::SeqCst) {
            return None;
        }
        let turn = port.turn(&self.memory().own).unwrap_or_else(|error| {
            log::warn!("agent port: the guest's queues are invalid: {error}");
            port.reset();
            Turn {
                interrupt: self.transport.lock().need_reset(),
                ..Turn::default()
            }
        });
        if turn.interrupt {
            signal(&self.interrupt);
        }
        Some(Pending {
            turn,
            host: port.host(),
            wants_host: port.wants_host(),
        })
    }

    /// Connects the port to `host`.
    pub fn join(&self, host: UnixStream) {
        let mut port = self.port.lock();
        // The guest may have reset the device meanwhile.
        if port.wants_host() {
            port.join(host);
        }
    }

    /// Disconnects the port from the host.
    pub fn hang_up(&self) {
        self.port.lock().hang_up();
    }

    fn write_control(&self, offset: u64, data: &[u8]) {
        let mut port = self.port.lock();
        let effect = self.transport.lock().write(offset, data);
        match effect {
            Effect::None | Effect::Notify(_) => {}
            Effect::Reset => port.reset(),
            Effect::Negotiate(_) => self.transport.lock().accept_features(),
            Effect::Start => self.start(&mut port),
            Effect::StopQueue(index) => port.stop_queue(index),
        }
        // The thread may be waiting for the old connection.
        signal(&self.kick);
    }

    fn start(&self, port: &mut Port) {
        let ready = self.transport.lock().ready_queues();
        let memory = self.memory();
        let check = |(index, queue): (usize, crate::virtio::Queue)| {
            queue.check(&memory.ram).map(|()| Ring {
                index,
                queue,
                base: 0,
            })
        };
        let checked: Result<Vec<_>, _> = ready.into_iter().map(check).collect();
        let started = checked
            .map_err(|error| error.to_string())
            .and_then(|rings| {
                let rings = running(&rings).map_err(|error| error.to_string())?;
                port.start(rings, PortState::default(), 0);
                Ok(())
            });
        if let Err(error) = started {
            log::warn!("agent port: what the guest's driver asked for failed: {error}");
            if self.transport.lock().need_reset() {
                signal(&self.interrupt);
            }
        }
    }
}

/// What is left to do after a turn.
#[derive(Debug)]
pub struct Pending {
    pub turn: Turn,
    /// The connection to the host.
    pub host: Option<Arc<UnixStream>>,
    /// Whether the port should be connected to the host.
    pub wants_host: bool,
}

/// The queues that run, by their numbers.
fn running(rings: &[Ring]) -> Result<[Option<DriverRing>; QUEUES], ConsoleError> {
    let mut running: [Option<DriverRing>; QUEUES] = Default::default();
    for ring in rings {
        if let Some(place) = running.get_mut(ring.index) {
            *place = Some(DriverRing::new(ring)?);
        }
    }
    Ok(running)
}
