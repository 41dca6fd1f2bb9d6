// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user front end: requests to the balloon's back end.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use host_migrator::GuestRam;
use spec::balloon::{CONFIG_SIZE, Config, feature};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
    VhostUserHeaderFlag, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures as Virtio,
    VhostUserVringAddrFlags,
};
use vhost::vhost_user::{Error as VhostUserError, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::deadline::Deadline;
use super::device_state;
use super::error::{VirtioError, io_error};
use super::queue::Ring;
use super::transport::MAX_QUEUES;

/// How long the back end may take for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// The eventfds of a queue.
#[derive(Debug)]
pub struct QueueEvents {
    /// The guest has made buffers available.
    pub kick: EventFd,
    /// The back end has used buffers.
    pub call: EventFd,
}

/// The front end's side of the connection, and the data needed to set the rings up again.
pub struct FrontEnd {
    frontend: Frontend,
    deadline: Deadline,
    ram: Arc<GuestRam>,
    events: Arc<[QueueEvents]>,
    offered: u64,
    protocol: Protocol,
    queue_count: usize,
    negotiated: Option<u64>,
    rings: Vec<Ring>,
    suspended: bool,
    logging: bool,
}

impl FrontEnd {
    /// Becomes the owner of the back end and gives it the guest's memory. `channel` is the back end's end of the channel on
    /// which it may send requests.
    ///
    /// # Errors
    /// [`VirtioError`] if the back end lacks something that a balloon needs, or a request fails.
    pub fn new(
        connection: UnixStream,
        channel: UnixStream,
        ram: Arc<GuestRam>,
        events: Arc<[QueueEvents]>,
    ) -> Result<Self, VirtioError> {
        let deadline = connection
            .try_clone()
            .and_then(|clone| Deadline::new(clone, ANSWER_LIMIT))
            .map_err(io_error("watch the connection to the balloon back end"))?;
        let mut front_end = Self {
            frontend: Frontend::from_stream(connection, MAX_QUEUES as u64),
            deadline,
            ram,
            events,
            offered: 0,
            protocol: Protocol::empty(),
            queue_count: MAX_QUEUES,
            negotiated: None,
            rings: Vec::new(),
            suspended: false,
            logging: false,
        };
        front_end.agree(channel)?;
        front_end.share_memory()?;
        Ok(front_end)
    }

    /// The features that the back end offers, including vhost-user's own.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    /// The queues that the back end has.
    pub fn queue_count(&self) -> usize {
        self.queue_count
    }

    /// The rings that the driver has set up, with the bases of the last [`FrontEnd::suspend`].
    pub fn rings(&self) -> &[Ring] {
        &self.rings
    }

    /// Whether the rings are stopped.
    pub fn suspended(&self) -> bool {
        self.suspended
    }

    /// Whether a driver has negotiated features.
    pub fn in_use(&self) -> bool {
        self.negotiated.is_some()
    }

    /// Whether the back end can save and load its own state.
    pub fn has_device_state(&self) -> bool {
        self.protocol.contains(Protocol::DEVICE_STATE)
    }

    /// Reads the configuration space.
    pub fn read_config(&mut self) -> Result<[u8; CONFIG_SIZE], VirtioError> {
        let request = "GET_CONFIG";
        let (_, bytes) = self.ask(request, |frontend| {
            frontend.get_config(
                0,
                CONFIG_SIZE as u32,
                VhostUserConfigFlags::empty(),
                &[0; CONFIG_SIZE],
            )
        })?;
        let bytes = <[u8; CONFIG_SIZE]>::try_from(bytes);
        bytes.map_err(|_| VirtioError::Answer { request })
    }

    /// Writes `data` to the configuration space at `at`.
    pub fn write_config(&mut self, at: usize, data: &[u8]) -> Result<(), VirtioError> {
        self.ask("SET_CONFIG", |frontend| {
            frontend.set_config(at as u32, VhostUserConfigFlags::empty(), data)
        })
    }

    /// Writes the driver's fields of `config`. They are all that is known of a back end whose state could not be saved.
    pub fn write_what_the_driver_wrote(
        &mut self,
        config: &[u8; CONFIG_SIZE],
    ) -> Result<(), VirtioError> {
        for at in [Config::ACTUAL, Config::POISON] {
            self.write_config(at, &config[at..at + 4])?;
        }
        Ok(())
    }

    /// The driver accepted `features`.
    pub fn negotiate(&mut self, features: u64) -> Result<(), VirtioError> {
        self.send_features(features)?;
        self.negotiated = Some(features);
        Ok(())
    }

    /// The driver has set `rings` up. They run from now on, or from the next [`FrontEnd::resume`] if the device is
    /// suspended.
    pub fn start(&mut self, rings: Vec<Ring>) -> Result<(), VirtioError> {
        self.rings = rings;
        if self.suspended {
            return Ok(());
        }
        self.set_rings_up()
    }

    /// Takes the queue `index` away from the back end.
    pub fn stop_queue(&mut self, index: usize) -> Result<(), VirtioError> {
        let Some(at) = self.rings.iter().position(|ring| ring.index == index) else {
            return Ok(());
        };
        self.rings.remove(at);
        if self.suspended {
            return Ok(());
        }
        self.stop_ring(index).map(|_| ())
    }

    /// Stops every ring and keeps its position. After the return the back end does not access guest memory.
    pub fn suspend(&mut self) -> Result<(), VirtioError> {
        if !self.suspended {
            self.take_rings_down()?;
            self.suspended = true;
        }
        Ok(())
    }

    /// Runs the rings again from where they were stopped.
    pub fn resume(&mut self) -> Result<(), VirtioError> {
        if self.suspended {
            self.suspended = false;
            self.set_rings_up()?;
        }
        Ok(())
    }

    /// Sets rings up as another front end left them; they run from the next [`FrontEnd::resume`].
    pub fn load(&mut self, features: Option<u64>, rings: Vec<Ring>) -> Result<(), VirtioError> {
        self.suspended = true;
        self.rings = rings;
        features.map_or(Ok(()), |features| self.negotiate(features))
    }

    /// Forgets the driver.
    pub fn reset(&mut self) -> Result<(), VirtioError> {
        if !self.suspended {
            self.take_rings_down()?;
        }
        self.rings.clear();
        self.negotiated = None;
        if self.protocol.contains(Protocol::RESET_DEVICE) {
            self.ask("RESET_DEVICE", VhostUserFrontend::reset_device)?;
        }
        Ok(())
    }

    /// Makes the back end log its writes to guest memory in `log`.
    pub fn start_logging(&mut self, log: &File, bytes: u64) -> Result<(), VirtioError> {
        if self.offered & Virtio::LOG_ALL.bits() == 0 {
            return Err(VirtioError::Lacks("VHOST_F_LOG_ALL, a dirty log"));
        }
        if !self.protocol.contains(Protocol::LOG_SHMFD) {
            return Err(VirtioError::Lacks(
                "VHOST_USER_PROTOCOL_F_LOG_SHMFD, a shared dirty log",
            ));
        }
        let region = VhostUserDirtyLogRegion {
            mmap_size: bytes,
            mmap_offset: 0,
            mmap_handle: log.as_raw_fd(),
        };
        self.set_logging(true, |front_end| {
            front_end.ask("SET_LOG_BASE", |frontend| {
                frontend.set_log_base(0, Some(region))
            })
        })
    }

    /// Stops logging.
    pub fn stop_logging(&mut self) -> Result<(), VirtioError> {
        if !self.logging {
            return Ok(());
        }
        self.set_logging(false, |_| Ok(()))
    }

    /// Reads the back end's own state; `None` if the back end does not support that.
    pub fn save_device_state(&mut self) -> Result<Option<Vec<u8>>, VirtioError> {
        if !self.has_device_state() {
            return Ok(None);
        }
        let action = "read the balloon back end's state";
        let (reader, writer) = std::io::pipe().map_err(io_error(action))?;
        let other = self.exchange_state(VhostTransferStateDirection::SAVE, writer.into())?;
        let reader = other.unwrap_or_else(|| OwnedFd::from(reader).into());
        let state = device_state::receive(reader, ANSWER_LIMIT).map_err(io_error(action))?;
        self.check_device_state()?;
        Ok(Some(state))
    }

    /// Gives the back end the state of another.
    pub fn load_device_state(&mut self, state: &[u8]) -> Result<(), VirtioError> {
        let action = "give the balloon back end its state";
        let (reader, writer) = std::io::pipe().map_err(io_error(action))?;
        let other = self.exchange_state(VhostTransferStateDirection::LOAD, reader.into())?;
        let writer = other.unwrap_or_else(|| OwnedFd::from(writer).into());
        device_state::send(writer, state, ANSWER_LIMIT).map_err(io_error(action))?;
        self.check_device_state()
    }

    fn exchange_state(
        &mut self,
        direction: VhostTransferStateDirection,
        pipe: OwnedFd,
    ) -> Result<Option<File>, VirtioError> {
        self.ask("SET_DEVICE_STATE_FD", |frontend| {
            frontend.set_device_state_fd(direction, VhostTransferStatePhase::STOPPED, pipe)
        })
    }

    fn check_device_state(&mut self) -> Result<(), VirtioError> {
        self.ask("CHECK_DEVICE_STATE", |frontend| {
            frontend.check_device_state()
        })
    }

    /// Agrees on the protocol.
    fn agree(&mut self, channel: UnixStream) -> Result<(), VirtioError> {
        self.ask("SET_OWNER", |frontend| frontend.set_owner())?;
        self.offered = self.ask("GET_FEATURES", |frontend| frontend.get_features())?;
        if self.offered & (1 << feature::VERSION_1) == 0 {
            return Err(VirtioError::Lacks("VIRTIO_F_VERSION_1"));
        }
        if self.offered & Virtio::PROTOCOL_FEATURES.bits() == 0 {
            return Err(VirtioError::Lacks("VHOST_USER_F_PROTOCOL_FEATURES"));
        }
        let offered = self.ask("GET_PROTOCOL_FEATURES", |frontend| {
            frontend.get_protocol_features()
        })?;
        let wanted = Protocol::CONFIG
            | Protocol::REPLY_ACK
            | Protocol::MQ
            | Protocol::BACKEND_REQ
            | Protocol::LOG_SHMFD
            | Protocol::RESET_DEVICE
            | Protocol::DEVICE_STATE;
        self.protocol = offered & wanted;
        if !self.protocol.contains(Protocol::CONFIG) {
            return Err(VirtioError::Lacks("VHOST_USER_PROTOCOL_F_CONFIG"));
        }
        let protocol = self.protocol;
        self.ask("SET_PROTOCOL_FEATURES", |frontend| {
            frontend.set_protocol_features(protocol)
        })?;
        if protocol.contains(Protocol::REPLY_ACK) {
            // Ask for an answer to every request, so that errors are noticed at once.
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if protocol.contains(Protocol::MQ) {
            let count = self.ask("GET_QUEUE_NUM", VhostUserFrontend::get_queue_num)?;
            self.queue_count = usize::try_from(count).map_or(MAX_QUEUES, |n| n.min(MAX_QUEUES));
        }
        if protocol.contains(Protocol::BACKEND_REQ) {
            self.ask("SET_BACKEND_REQ_FD", |frontend| {
                frontend.set_backend_request_fd(&channel)
            })?;
        }
        Ok(())
    }

    /// Gives the back end other memory. No ring may have been set up.
    ///
    /// # Errors
    /// [`VirtioError`] if the request fails.
    pub fn set_memory(&mut self, ram: Arc<GuestRam>) -> Result<(), VirtioError> {
        self.ram = ram;
        self.share_memory()
    }

    fn share_memory(&mut self) -> Result<(), VirtioError> {
        let request = "SET_MEM_TABLE";
        let table: Result<Vec<_>, _> = self
            .ram
            .memory()
            .iter()
            .map(VhostUserMemoryRegionInfo::from_guest_region)
            .collect();
        let table = table.map_err(|source| VirtioError::Conversation { request, source })?;
        self.ask(request, |frontend| frontend.set_mem_table(&table))
            .map(|_| ())
    }

    /// Switches logging while the rings are stopped. If the addresses of a running ring were set again, the ring could lose
    /// the used index that it is about to publish.
    fn set_logging(
        &mut self,
        on: bool,
        prepare: impl FnOnce(&mut Self) -> Result<(), VirtioError>,
    ) -> Result<(), VirtioError> {
        let running = !self.suspended;
        if running {
            self.take_rings_down()?;
        }
        let before = std::mem::replace(&mut self.logging, on);
        let switched = prepare(self).and_then(|()| {
            self.negotiated
                .map_or(Ok(()), |features| self.send_features(features))
        });
        if switched.is_err() {
            self.logging = before;
        }
        if running && let Err(error) = self.set_rings_up() {
            if switched.is_ok() {
                // Restore the old setting: a log that nobody harvests would slow the back end down for ever.
                self.logging = before;
                let features = self.negotiated;
                features.map_or(Ok(()), |features| self.send_features(features))?;
                self.set_rings_up()?;
            }
            return Err(error);
        }
        switched
    }

    fn send_features(&mut self, features: u64) -> Result<(), VirtioError> {
        let mut all = features | Virtio::PROTOCOL_FEATURES.bits();
        if self.logging {
            all |= Virtio::LOG_ALL.bits();
        }
        self.ask("SET_FEATURES", |frontend| frontend.set_features(all))
    }

    /// Stops every ring, or none.
    fn take_rings_down(&mut self) -> Result<(), VirtioError> {
        for at in 0..self.rings.len() {
            match self.stop_ring(self.rings[at].index) {
                Ok(base) => self.rings[at].base = base,
                Err(error) => {
                    for ring in self.rings.clone().into_iter().take(at) {
                        self.set_ring_up(ring)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn set_rings_up(&mut self) -> Result<(), VirtioError> {
        for ring in self.rings.clone() {
            self.set_ring_up(ring)?;
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: usize) -> Result<u16, VirtioError> {
        let request = "GET_VRING_BASE";
        let base = self.ask(request, |frontend| frontend.get_vring_base(index))?;
        u16::try_from(base).map_err(|_| VirtioError::Answer { request })
    }

    fn set_ring_up(&mut self, ring: Ring) -> Result<(), VirtioError> {
        let Ring { index, queue, base } = ring;
        let events = Arc::clone(&self.events);
        let layout = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: if self.logging {
                VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits()
            } else {
                0
            },
            desc_table_addr: self.host_address(queue.descriptors)?,
            used_ring_addr: self.host_address(queue.used)?,
            avail_ring_addr: self.host_address(queue.available)?,
            log_addr: self.logging.then_some(queue.used),
        };
        self.ask("SET_VRING_NUM", |f| f.set_vring_num(index, queue.size))?;
        self.ask("SET_VRING_ADDR", |f| f.set_vring_addr(index, &layout))?;
        self.ask("SET_VRING_BASE", |f| f.set_vring_base(index, base))?;
        let QueueEvents { kick, call } = &events[index];
        self.ask("SET_VRING_CALL", |f| f.set_vring_call(index, call))?;
        self.ask("SET_VRING_KICK", |f| f.set_vring_kick(index, kick))?;
        self.ask("SET_VRING_ENABLE", |f| f.set_vring_enable(index, true))?;
        // A kick may have been lost while the ring was stopped. A superfluous kick is harmless.
        kick.write(1).map_err(io_error("kick a queue"))
    }

    /// The address at which this process has `gpa` mapped: vhost-user uses such addresses for rings.
    fn host_address(&self, gpa: u64) -> Result<u64, VirtioError> {
        let address = self.ram.memory().get_host_address(GuestAddress(gpa));
        address
            .map(|pointer| pointer.addr() as u64)
            .map_err(|error| VirtioError::Io {
                action: "find a queue in guest memory",
                source: std::io::Error::other(error),
            })
    }

    fn ask<T>(
        &mut self,
        request: &'static str,
        talk: impl FnOnce(&mut Frontend) -> vhost::Result<T>,
    ) -> Result<T, VirtioError> {
        let due = self.deadline.start();
        let answer = talk(&mut self.frontend);
        drop(due);
        answer.map_err(|source| match source {
            _ if self.deadline.expired() => VirtioError::Timeout { request },
            vhost::Error::VhostUserProtocol(VhostUserError::BackendInternalError) => {
                VirtioError::Refused { request }
            }
            source => VirtioError::Conversation { request, source },
        })
    }
}

impl std::fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrontEnd")
            .field("protocol", &self.protocol)
            .field("negotiated", &self.negotiated)
            .field("rings", &self.rings)
            .field("suspended", &self.suspended)
            .field("logging", &self.logging)
            .finish_non_exhaustive()
    }
}
