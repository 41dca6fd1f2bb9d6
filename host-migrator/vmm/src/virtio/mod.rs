// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's virtio devices: a balloon, which a vhost-user back end implements, and a [`console`], which this process
//! implements.
//!
//! The transport of both is version 2 of virtio-mmio (virtio 1.2, section 4.2), which is what Linux's `virtio_mmio`
//! driver expects of a modern device:
//!
//! - It finds the device by ACPI (`LNRO0005`) or the command line, reads magic number, version 2 and the
//!   device's id, and takes 32-bit accesses for registers, accesses of any width for the configuration space.
//! - It insists on `VIRTIO_F_VERSION_1`, writes the features half by half, sets FEATURES_OK and reads the status
//!   back: a device that does not accept them leaves the bit clear.
//! - It numbers queues densely: a queue without its feature has no number (see
//!   [`spec::balloon::QueueNumbering`]). The balloon's front end therefore has registers for all queues and runs
//!   those that the driver made ready.
//! - It reads the configuration generation before and after each field, and repeats if it changed.
//! - Its interrupt handler reads the interrupt status, acknowledges the bits it saw, reads the configuration
//!   again for bit 1 and checks every queue for bit 0. Bit 0 always reads as set here, because the balloon's
//!   back end interrupts the guest through KVM without this process; checking a queue without used buffers is
//!   harmless.
//! - Before removal, suspend and reboot it writes 0 to the status, and expects the device to do nothing afterwards.
//!
//! Kicks go from the guest to the device by ioeventfd; interrupts come back by irqfd, edge triggered. For the balloon,
//! this process handles set-up, the configuration space, and migration.

mod backend_channel;
pub mod console;
mod deadline;
mod device;
mod device_state;
mod dirty_log;
mod error;
mod front_end;
mod keeper;
mod queue;
mod state;
mod transport;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::wire::connect_unix;
use host_migrator::{DirtyLog, GuestRam};
use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::mmio::{MmioDevice, MmioSlot};
use device::Device;
use error::io_error;
use front_end::QueueEvents;
use keeper::{Connection, Keeper};
use transport::MAX_QUEUES;

pub use error::VirtioError;
pub use queue::{MAX_QUEUE_SIZE, Queue, QueueError};
pub use state::{StateError, VirtioState};
pub use transport::Registers;

/// How long a back end that is started together with the VMM may take before it listens.
const START_LIMIT: Duration = Duration::from_secs(2);

/// A balloon on virtio-mmio.
///
/// If a back end dies or does not answer in time, it is lost, and the guest runs on. Another back end that listens on the
/// same socket replaces it. Until then a migration goes on without the balloon.
#[derive(Debug)]
pub struct VhostUserBalloon {
    device: Arc<Device>,
    keeper: Option<Keeper>,
}

impl VhostUserBalloon {
    /// Connects to the back end on `socket`, which may still be starting, gives it the guest's memory `ram`, and
    /// registers the device's kicks and interrupts with `vm`, which has an interrupt controller already.
    ///
    /// # Errors
    /// [`VirtioError`] if nobody listens in time, the back end lacks a feature, or KVM refuses.
    pub fn connect(
        socket: &Path,
        ram: &Arc<GuestRam>,
        vm: &VmFd,
        slot: MmioSlot,
    ) -> Result<Arc<Self>, VirtioError> {
        let connection = reach(socket).map_err(|source| VirtioError::Connect {
            path: socket.to_owned(),
            source,
        })?;
        let events = queue_events()?;
        let config_interrupt = event()?;
        let mut first = Connection::open(connection, ram, &events)?;
        let config = first.front_end.read_config()?;
        // Last, so that a back end's refusal leaves the machine unchanged.
        register(vm, slot, &events, &config_interrupt)?;
        let Connection { front_end, served } = first;
        let device = Arc::new(Device::new(
            front_end,
            config,
            Arc::clone(ram),
            Arc::clone(&events),
            config_interrupt,
            served.connection()?,
        ));
        let keeper = Keeper::start(&device, socket, events, served)
            .map_err(io_error("watch the balloon back end"))?;
        let keeper = Some(keeper);
        Ok(Arc::new(Self { device, keeper }))
    }

    /// From now on the guest's memory is `ram`, for the back end, too. The device must not have a driver.
    ///
    /// # Errors
    /// [`VirtioError`] if the back end does not take it, or is lost during the call.
    pub fn set_memory(&self, ram: &Arc<GuestRam>) -> Result<(), VirtioError> {
        self.device.set_memory(ram)
    }

    /// Stops the rings. The guest's vCPUs must be stopped. After the return the back end does not access guest memory. Does
    /// nothing if the rings are stopped.
    ///
    /// # Errors
    /// [`VirtioError`] if the back end refuses or is lost during the call. The rings of a back end lost before are stopped.
    pub fn stop(&self) -> Result<(), VirtioError> {
        self.device.stop()
    }

    /// Runs stopped rings again. After [`VhostUserBalloon::load`] the guest also gets a configuration change interrupt, so
    /// the interrupt controllers must have their state by then. Does nothing if the rings run. If the back end is lost, the
    /// guest runs on without it, so there is no error.
    pub fn resume(&self) {
        self.device.resume();
    }

    /// The device's state, between [`VhostUserBalloon::stop`] and [`VhostUserBalloon::resume`].
    ///
    /// # Errors
    /// [`VirtioError`] if the rings are not stopped or the back end does not give its state. If the back end is lost, only
    /// the transport is saved, and the queues go on at their used indices.
    pub fn save(&self) -> Result<VirtioState, VirtioError> {
        self.device.save()
    }

    /// Loads the state from [`VhostUserBalloon::save`] of another device. It runs after [`VhostUserBalloon::resume`].
    ///
    /// # Errors
    /// [`VirtioError::State`] names what does not fit; other errors are the back end's.
    pub fn load(&self, state: &VirtioState) -> Result<(), VirtioError> {
        self.device.load(state)
    }

    /// The log of the guest pages that the back end writes. Its start fails if the back end has no dirty log.
    pub fn dirty_log(&self) -> Box<dyn DirtyLog> {
        Box::new(dirty_log::BackEndLog::new(Arc::clone(&self.device)))
    }

    /// Why the back end is lost; `None` if it is not.
    pub fn lost(&self) -> Option<String> {
        self.device.lost()
    }

    /// The features that the guest's driver uses, and the features that it is offered.
    pub fn features(&self) -> (u64, u64) {
        self.device.features()
    }

    /// Invalid accesses of the guest, which were ignored.
    pub fn ignored_accesses(&self) -> u64 {
        self.device.ignored()
    }
}

impl MmioDevice for VhostUserBalloon {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write(offset, data);
    }
}

impl Drop for VhostUserBalloon {
    fn drop(&mut self) {
        self.device.close();
        drop(self.keeper.take());
    }
}

/// Connects to `socket`, and waits a moment for a back end that does not listen yet.
fn reach(socket: &Path) -> io::Result<UnixStream> {
    let end = Instant::now() + START_LIMIT;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match connect_unix(socket, left) {
            Err(error) if is_starting(&error) && Instant::now() < end => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn is_starting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn queue_events() -> Result<Arc<[QueueEvents]>, VirtioError> {
    let pair = |_| {
        Ok(QueueEvents {
            kick: event()?,
            call: event()?,
        })
    };
    (0..MAX_QUEUES).map(pair).collect()
}

fn event() -> Result<EventFd, VirtioError> {
    new_event().map_err(io_error("make an eventfd"))
}

/// A non-blocking eventfd.
fn new_event() -> io::Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
}

/// Makes KVM turn the guest's writes to QUEUE_NOTIFY into kicks, and calls into interrupts.
fn register(
    vm: &VmFd,
    slot: MmioSlot,
    events: &[QueueEvents],
    config_interrupt: &EventFd,
) -> Result<(), VirtioError> {
    let refused = |action| move |source| VirtioError::Kvm { action, source };
    for (index, queue) in (0u32..).zip(events) {
        register_kick(vm, slot, index, &queue.kick).map_err(refused("register a queue's kick"))?;
        vm.register_irqfd(&queue.call, slot.gsi)
            .map_err(refused("register a queue's interrupt"))?;
    }
    vm.register_irqfd(config_interrupt, slot.gsi)
        .map_err(refused("register the configuration interrupt"))
}

/// Makes KVM turn the guest's writes of `queue` to QUEUE_NOTIFY into `kick`.
fn register_kick(
    vm: &VmFd,
    slot: MmioSlot,
    queue: u32,
    kick: &EventFd,
) -> Result<(), kvm_ioctls::Error> {
    let notify = IoEventAddress::Mmio(slot.gpa + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
    vm.register_ioevent(kick, &notify, queue)
}
