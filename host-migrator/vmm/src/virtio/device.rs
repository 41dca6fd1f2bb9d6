// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon device: the guest's accesses on one side, the vhost-user connection to the back end on the other.
//!
//! There are two locks, always taken in this order: that of the front end, held for as long as the back end takes to
//! answer, and that of the registers, held for a moment. A vCPU that only reads registers never waits for the back end.

use std::fs::File;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use host_migrator::GuestRam;
use parking_lot::Mutex;
use spec::PageRange;
use spec::balloon::{CONFIG_SIZE, Config};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::EventFd;

use super::error::VirtioError;
use super::front_end::{FrontEnd, QueueEvents};
use super::queue::Ring;
use super::state::{Fit, VirtioState};
use super::transport::{DeviceType, Effect, MAX_QUEUES, Transport};

const STATUS: u64 = reg::VIRTIO_MMIO_STATUS as u64;
const QUEUE_READY: u64 = reg::VIRTIO_MMIO_QUEUE_READY as u64;
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;
const BALLOON: DeviceType = DeviceType {
    id: VIRTIO_ID_BALLOON,
    driver_words: &[Config::ACTUAL, Config::POISON],
};

/// The state that the threads of a balloon share.
#[derive(Debug)]
pub(super) struct Device {
    front_end: Mutex<FrontEnd>,
    transport: Mutex<Transport>,
    ram: Mutex<Arc<GuestRam>>,
    events: Arc<[QueueEvents]>,
    config_interrupt: EventFd,
    connection: Mutex<UnixStream>,
    /// Why the back end is lost, while no other has taken its place.
    lost: Mutex<Option<String>>,
    /// Whether the VMM is ending the connection.
    closing: AtomicBool,
    /// Whether the rings are to be stopped.
    stopped: AtomicBool,
    /// How many back ends there were.
    back_ends: AtomicU64,
    /// Whether a state was loaded and the guest has not run since.
    loaded: AtomicBool,
}

impl Device {
    /// A device in its state after power-on, with the configuration space `config`. `connection` is a clone of the front
    /// end's connection.
    pub fn new(
        front_end: FrontEnd,
        config: [u8; CONFIG_SIZE],
        ram: Arc<GuestRam>,
        events: Arc<[QueueEvents]>,
        config_interrupt: EventFd,
        connection: UnixStream,
    ) -> Self {
        let (features, queues) = (front_end.offered(), front_end.queue_count());
        let transport = Transport::new(BALLOON, features, queues, config);
        Self {
            front_end: Mutex::new(front_end),
            transport: Mutex::new(transport),
            ram: Mutex::new(ram),
            events,
            config_interrupt,
            connection: Mutex::new(connection),
            lost: Mutex::default(),
            closing: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            back_ends: AtomicU64::new(1),
            loaded: AtomicBool::new(false),
        }
    }

    /// The guest reads.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.transport.lock().read(offset, data);
    }

    /// The guest writes.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            STATUS | QUEUE_READY => self.write_control(offset, data),
            CONFIG.. => self.write_config(offset, data),
            _ => {
                let effect = self.transport.lock().write(offset, data);
                // The usual way of a kick is KVM's ioeventfd; this is the way without.
                if let Effect::Notify(index) = effect {
                    signal(&self.events[index].kick);
                }
            }
        }
    }

    /// The guest's memory.
    pub fn ram(&self) -> Arc<GuestRam> {
        Arc::clone(&self.ram.lock())
    }

    /// From now on the guest's memory is `ram`. The device must not have a driver. A back end that is lost is given it
    /// when another takes its place.
    pub fn set_memory(&self, ram: &Arc<GuestRam>) -> Result<(), VirtioError> {
        let mut front_end = self.front_end.lock();
        *self.ram.lock() = Arc::clone(ram);
        match self.lost() {
            None => self.settle(front_end.set_memory(Arc::clone(ram))),
            Some(_) => Ok(()),
        }
    }

    /// The features that the guest's driver uses, and the features that it is offered.
    pub fn features(&self) -> (u64, u64) {
        let transport = self.transport.lock();
        (transport.accepted(), transport.offered())
    }

    /// Accesses of the guest that were ignored.
    pub fn ignored(&self) -> u64 {
        self.transport.lock().ignored()
    }

    /// Why the back end is lost, while no other has taken its place.
    pub fn lost(&self) -> Option<String> {
        self.lost.lock().clone()
    }

    /// The back end's number. Each back end has another one.
    pub fn back_end(&self) -> u64 {
        self.back_ends.load(Ordering::Acquire)
    }

    /// # Errors
    /// [`VirtioError::Lost`] if the back end is lost.
    pub fn check_alive(&self) -> Result<(), VirtioError> {
        self.lost()
            .map_or(Ok(()), |reason| Err(VirtioError::Lost(reason)))
    }

    /// Whether the VMM is ending the connection.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The used rings of the queues that the driver has made ready.
    pub fn used_rings(&self) -> Vec<PageRange> {
        let queues = self.transport.lock().ready_queues();
        let pages = queues
            .into_iter()
            .filter_map(|(_, queue)| queue.used_pages());
        pages.collect()
    }

    /// Stops the rings. Those of a lost back end are stopped already.
    pub fn stop(&self) -> Result<(), VirtioError> {
        let mut front_end = self.front_end.lock();
        if self.lost().is_none() {
            self.settle(front_end.suspend())?;
        }
        self.stopped.store(true, Ordering::Release);
        Ok(())
    }

    /// Replaces a lost back end by another one, whose front end uses `connection`. The state of the lost one is not known, so
    /// each queue goes on at its used index.
    pub fn replace_back_end(
        &self,
        mut front_end: FrontEnd,
        connection: UnixStream,
    ) -> Result<(), VirtioError> {
        let mut current = self.front_end.lock();
        let state = self.state_of_lost();
        let checked = state.check(&Fit {
            offered: front_end.offered(),
            queue_count: front_end.queue_count(),
            device_state: front_end.has_device_state(),
            ram: &self.ram(),
        })?;
        let in_use = checked.features.is_some();
        front_end.load(checked.features, checked.rings)?;
        if in_use {
            front_end.write_what_the_driver_wrote(&state.config)?;
        }
        if !self.stopped.load(Ordering::Acquire) {
            front_end.resume()?;
        }
        let config = front_end.read_config()?;
        *current = front_end;
        *self.connection.lock() = connection;
        self.back_ends.fetch_add(1, Ordering::AcqRel);
        *self.lost.lock() = None;
        self.tell(self.transport.lock().change_config(config));
        Ok(())
    }

    /// Runs the rings again. If that fails, the guest runs on without the balloon and is told so.
    pub fn resume(&self) {
        self.stopped.store(false, Ordering::Release);
        if self.lost().is_some() {
            // The next back end starts at once.
            return;
        }
        let resumed = self.converse(|front_end| {
            front_end.resume()?;
            if self.loaded.swap(false, Ordering::Relaxed) {
                // The back end's configuration may differ from the last one's. The interrupt also makes the
                // guest check its queues, in case an interrupt for a used buffer was on its way when the source's
                // state was saved.
                let config = front_end.read_config()?;
                self.tell(self.transport.lock().change_config(config));
            }
            Ok(())
        });
        if let Err(error) = resumed {
            log::error!("balloon: the guest runs on without it: {error}");
            if self.lost().is_none() {
                self.tell(self.transport.lock().need_reset());
            }
        }
    }

    /// The state, once [`Device::stop`] has been called.
    pub fn save(&self) -> Result<VirtioState, VirtioError> {
        if self.lost().is_some() && self.stopped.load(Ordering::Acquire) {
            return Ok(self.state_of_lost());
        }
        self.converse(|front_end| {
            if !front_end.suspended() {
                return Err(VirtioError::NotStopped);
            }
            let back_end = front_end.save_device_state()?;
            let mut bases = [0; MAX_QUEUES];
            for ring in front_end.rings() {
                bases[ring.index] = ring.base;
            }
            let transport = self.transport.lock();
            Ok(VirtioState {
                registers: *transport.registers(),
                config: transport.config(),
                bases,
                back_end,
                back_end_lost: false,
            })
        })
    }

    /// The known state of a device whose back end is lost.
    fn state_of_lost(&self) -> VirtioState {
        let transport = self.transport.lock();
        VirtioState {
            registers: *transport.registers(),
            config: transport.config(),
            bases: [0; MAX_QUEUES],
            back_end: None,
            back_end_lost: true,
        }
    }

    /// Loads the state of another device. It runs after [`Device::resume`].
    pub fn load(&self, state: &VirtioState) -> Result<(), VirtioError> {
        self.converse(|front_end| {
            if front_end.in_use() {
                return Err(VirtioError::InUse);
            }
            let checked = state.check(&Fit {
                offered: self.transport.lock().offered(),
                queue_count: front_end.queue_count(),
                device_state: front_end.has_device_state(),
                ram: &self.ram(),
            })?;
            front_end.load(checked.features, checked.rings)?;
            if let Some(back_end) = &state.back_end {
                front_end.load_device_state(back_end)?;
            } else if checked.features.is_some() {
                front_end.write_what_the_driver_wrote(&state.config)?;
            }
            let mut transport = self.transport.lock();
            transport.load(state.registers);
            transport.update_config(0, &state.config);
            self.loaded.store(true, Ordering::Relaxed);
            Ok(())
        })
    }

    /// Starts logging the back end's writes.
    pub fn start_logging(&self, log: &File, bytes: u64) -> Result<(), VirtioError> {
        self.converse(|front_end| front_end.start_logging(log, bytes))
    }

    /// Stops logging.
    pub fn stop_logging(&self) -> Result<(), VirtioError> {
        self.converse(FrontEnd::stop_logging)
    }

    /// Called when the back end has changed the configuration: reads it and tells the guest.
    pub fn refresh_config(&self) {
        let refreshed = self.converse(|front_end| {
            let config = front_end.read_config()?;
            self.tell(self.transport.lock().change_config(config));
            Ok(())
        });
        if let Err(error) = refreshed {
            log::warn!("balloon: a configuration change is lost: {error}");
        }
    }

    /// Called when the connection has ended.
    pub fn hung_up(&self) {
        // A request that failed because of this names its cause first.
        let _turn = self.front_end.lock();
        self.lose("the connection was closed".into());
    }

    /// Ends the connection. This is not reported as a loss.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        let mut lost = self.lost.lock();
        lost.get_or_insert_with(|| "the VMM has closed the device".into());
        drop(lost);
        // It fails only if the connection has ended already.
        let _ = self.connection.lock().shutdown(Shutdown::Both);
    }

    fn write_control(&self, offset: u64, data: &[u8]) {
        let mut front_end = self.front_end.lock();
        let effect = self.transport.lock().write(offset, data);
        if self.lost().is_some() {
            return;
        }
        let carried_out = match effect {
            Effect::None | Effect::Notify(_) => Ok(()),
            Effect::Reset => self.reset(&mut front_end),
            Effect::Negotiate(features) => front_end
                .negotiate(features)
                .map(|()| self.transport.lock().accept_features()),
            Effect::Start => self.start(&mut front_end),
            Effect::StopQueue(index) => front_end.stop_queue(index),
        };
        if let Err(error) = self.settle(carried_out) {
            log::warn!("balloon: a request of the guest's driver failed: {error}");
            if effect == Effect::Start && self.lost().is_none() {
                self.tell(self.transport.lock().need_reset());
            }
        }
    }

    fn reset(&self, front_end: &mut FrontEnd) -> Result<(), VirtioError> {
        // A driver that probes the device resets it before it was used.
        if !front_end.in_use() {
            return Ok(());
        }
        front_end.reset()?;
        // The driver's writes are lost.
        let config = front_end.read_config()?;
        self.transport.lock().update_config(0, &config);
        Ok(())
    }

    fn start(&self, front_end: &mut FrontEnd) -> Result<(), VirtioError> {
        let ready = self.transport.lock().ready_queues();
        let mut rings = Vec::new();
        for (index, queue) in ready {
            let checked = queue.check(&self.ram());
            checked.map_err(|source| VirtioError::Queue { index, source })?;
            rings.push(Ring {
                index,
                queue,
                base: 0,
            });
        }
        front_end.start(rings)?;
        // A configuration change during the driver's start could not be reported then.
        self.tell(self.transport.lock().must_interrupt());
        Ok(())
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut front_end = self.front_end.lock();
        let at = self.transport.lock().config_write(offset, data.len());
        let Some(at) = at.filter(|_| self.lost().is_none()) else {
            return;
        };
        match self.settle(front_end.write_config(at, data)) {
            Ok(()) => self.transport.lock().update_config(at, data),
            Err(error) => log::warn!("balloon: a write to the configuration failed: {error}"),
        }
    }

    fn converse<T>(
        &self,
        talk: impl FnOnce(&mut FrontEnd) -> Result<T, VirtioError>,
    ) -> Result<T, VirtioError> {
        let mut front_end = self.front_end.lock();
        self.check_alive()?;
        self.settle(talk(&mut front_end))
    }

    /// Records the loss of the back end, if `result` says so.
    fn settle<T>(&self, result: Result<T, VirtioError>) -> Result<T, VirtioError> {
        if let Err(error) = &result
            && error.loses_back_end()
        {
            self.lose(error.to_string());
        }
        result
    }

    fn lose(&self, reason: String) {
        let mut lost = self.lost.lock();
        if lost.is_none() {
            log::error!("balloon: the back end is lost, the guest runs on without it: {reason}");
            *lost = Some(reason);
            // It fails only if the connection has ended already.
            let _ = self.connection.lock().shutdown(Shutdown::Both);
        }
    }

    fn tell(&self, must: bool) {
        if must {
            signal(&self.config_interrupt);
        }
    }
}

/// Signals `event`.
pub(super) fn signal(event: &EventFd) {
    // Fails only if the counter is full: then the other side has the event already.
    let _ = event.write(1);
}
