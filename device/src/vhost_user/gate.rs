// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks each message before the vhost-user crate sees it, and does what the crate cannot do.
//!
//! The crate checks types, sizes and the arithmetic of single fields. The gate checks the rest: that files are long
//! enough, that regions do not overlap and the dirty log covers them, that nothing changes a running ring, and that
//! kicks and interrupts are eventfds. The gate also does what the crate cannot do: the dirty log, reads past the end of
//! the configuration, the flags of configuration writes, and the socket for configuration changes, which the crate
//! hides.
//!
//! Every error is a refusal. A refused message has changed nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use spec::balloon::QueueNumbering;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags,
};
use vhost_user_backend::VhostUserBackend;

use crate::guest::config_channel::ConfigChannel;
use crate::memory::dirty_log::LogFile;
use crate::memory::guest_memory::MAX_REGIONS;
use crate::memory::lent_file::{file_type, is_eventfd, refuse_unfit};
use crate::vhost_user::backend::Backend;
use crate::vhost_user::messages::{CONFIG_HEADER_BYTES, Message, request};
use crate::virtqueue::ring::MAX_QUEUE_SIZE;

/// Bytes of a region in a message: guest address, size, user address and file offset.
const REGION_BYTES: usize = 32;
/// Where the region of `ADD_MEM_REG` and the first of `SET_MEM_TABLE` start.
const FIRST_REGION: usize = 8;

/// What happens to a message that is not refused.
#[derive(Debug)]
pub enum Passage {
    /// The crate gets it.
    Pass,
    /// The gate has done it. A front end that asked for an acknowledgement gets one.
    Done,
    /// The gate has done it, and this is the answer.
    Answer(Message),
}

/// What is known of one front end.
#[derive(Debug)]
pub struct Gate<'a> {
    backend: &'a Backend,
    channel: &'a ConfigChannel,
    acknowledges: bool,
    /// Whether it is settled that the front end takes configuration changes, or the log says what does not work without
    /// them.
    changes_are_settled: bool,
    log_all: bool,
    slots: Vec<Slot>,
    rings: [RingState; QueueNumbering::MAX_QUEUES],
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    start: u64,
    size: u64,
    user: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct RingState {
    started: bool,
    size: u32,
    /// Descriptors, used and available ring.
    addresses: Option<[u64; 3]>,
}

impl<'a> Gate<'a> {
    /// The gate of a front end that has not sent anything yet.
    pub fn new(backend: &'a Backend, channel: &'a ConfigChannel) -> Self {
        Self {
            backend,
            channel,
            acknowledges: false,
            changes_are_settled: false,
            log_all: false,
            slots: Vec::new(),
            rings: Default::default(),
        }
    }

    /// Whether `message` asks for an acknowledgement and has no other answer that could report a refusal.
    pub fn acknowledges(&self, message: &Message) -> bool {
        let answered = [request::GET_VRING_BASE, request::SET_LOG_BASE];
        self.acknowledges && message.needs_reply() && !answered.contains(&message.request())
    }

    /// Checks `message`, and does it if the crate cannot.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check(&mut self, message: &mut Message) -> io::Result<Passage> {
        match message.request() {
            request::SET_FEATURES => self.set_features(message.payload_u64(0)),
            request::SET_PROTOCOL_FEATURES => self.set_protocol_features(message.payload_u64(0)),
            request::SET_MEM_TABLE => self.set_mem_table(message),
            request::ADD_MEM_REG => self.add_mem_region(message),
            request::REM_MEM_REG => self.remove_mem_region(message),
            request::SET_LOG_BASE => self.set_log_base(message),
            request::SET_VRING_NUM => self.set_ring_size(message),
            request::SET_VRING_ADDR => self.set_ring_addresses(message),
            request::SET_VRING_BASE => {
                let ring = self.ring(message.payload_word(0))?;
                refuse_if(ring.started, "a started ring cannot be rewound")
            }
            request::GET_VRING_BASE => {
                self.ring(message.payload_word(0))?.started = false;
                Ok(Passage::Pass)
            }
            request::SET_VRING_ENABLE => self.ring(message.payload_word(0)).map(|_| Passage::Pass),
            request::SET_VRING_KICK => self.set_kick(message),
            request::SET_VRING_CALL | request::SET_VRING_ERR => {
                self.ring(message.payload_word(0) & 0xff)?;
                refuse_if(message.fds.len() > 1, "more than one file for an interrupt")?;
                // User Mode Linux is interrupted through a socket.
                let fits = |fd| is_eventfd(fd) || file_type(fd) == Ok(FileType::Socket);
                refuse_if(
                    !message.fds.iter().all(fits),
                    "the interrupt is not an eventfd",
                )?;
                message.fds.iter().try_for_each(unblock)?;
                Ok(Passage::Pass)
            }
            request::SET_BACKEND_REQ_FD => self.keep_channel(message),
            request::GET_CONFIG => {
                let config = self.backend.balloon().read_config();
                Ok(Passage::Answer(message.config_answer(&config)))
            }
            request::RESET_DEVICE => {
                // The crate disables the rings, the device stops them.
                self.rings = Default::default();
                self.log_all = false;
                Ok(Passage::Pass)
            }
            request::SET_CONFIG => self.set_config(message),
            _ => Ok(Passage::Pass),
        }
    }

    fn set_features(&mut self, features: u64) -> io::Result<Passage> {
        let offered = self.backend.balloon().offered_features();
        refuse_if(
            features & !offered != 0,
            "it sets features that were not offered",
        )?;
        let log_all = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        if log_all {
            self.refuse_beyond_log(&self.slots)?;
        }
        self.log_all = log_all;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // User Mode Linux: rings run from the start and are never stopped. A driver that is loaded again
            // acknowledges its features again, and then sets up its rings anew.
            self.rings = Default::default();
        }
        Ok(Passage::Pass)
    }

    fn set_protocol_features(&mut self, features: u64) -> io::Result<Passage> {
        let offered = self.backend.protocol_features().bits();
        refuse_if(
            features & !offered != 0,
            "it sets protocol features that were not offered",
        )?;
        self.acknowledges = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        self.settle_changes(features & VhostUserProtocolFeatures::BACKEND_REQ.bits() != 0);
        Ok(Passage::Pass)
    }

    /// Logs, once, what does not work with a front end that takes no configuration changes.
    fn settle_changes(&mut self, are_taken: bool) {
        if !std::mem::replace(&mut self.changes_are_settled, true) && !are_taken {
            log::warn!(
                "the front end takes no configuration changes (VHOST_USER_PROTOCOL_F_BACKEND_REQ): free page reporting, \
                 statistics and the hints of the guest's agent work; the guest's driver is not asked for hints, and \
                 learns of a new target only when it is loaded"
            );
        }
    }

    fn set_mem_table(&mut self, message: &mut Message) -> io::Result<Passage> {
        message.trim_mem_table();
        let regions = message.payload().len().saturating_sub(FIRST_REGION) / REGION_BYTES;
        refuse_if(
            regions != message.fds.len(),
            "the number of files differs from the number of memory regions",
        )?;
        let mut slots = Vec::new();
        for (number, file) in message.fds.iter().enumerate() {
            let slot = slot_of(message, FIRST_REGION + number * REGION_BYTES, file)?;
            refuse_overlap(&slots, slot)?;
            slots.push(slot);
        }
        self.use_slots(slots)
    }

    fn add_mem_region(&mut self, message: &Message) -> io::Result<Passage> {
        let [file] = &message.fds[..] else {
            return Err(invalid("a memory region needs exactly one file"));
        };
        let slot = slot_of(message, FIRST_REGION, file)?;
        refuse_overlap(&self.slots, slot)?;
        let mut slots = self.slots.clone();
        slots.push(slot);
        refuse_if(slots.len() > MAX_REGIONS, "too many memory regions")?;
        self.use_slots(slots)
    }

    fn remove_mem_region(&mut self, message: &mut Message) -> io::Result<Passage> {
        // The specification allows a file descriptor here, for old front ends.
        message.fds.clear();
        let gone = region(message, FIRST_REGION);
        let mut slots = self.slots.clone();
        slots.retain(|slot| *slot != gone);
        refuse_if(slots.len() == self.slots.len(), "no such memory region")?;
        self.use_slots(slots)
    }

    fn use_slots(&mut self, slots: Vec<Slot>) -> io::Result<Passage> {
        if self.log_all {
            self.refuse_beyond_log(&slots)?;
        }
        self.slots = slots;
        Ok(Passage::Pass)
    }

    fn refuse_beyond_log(&self, slots: &[Slot]) -> io::Result<Passage> {
        refuse_if(
            !self.backend.log().reaches(end_of(slots)),
            "guest memory reaches beyond the dirty log",
        )
    }

    /// Payload: `size u64, offset u64` of the log. The answer repeats it.
    fn set_log_base(&mut self, message: &mut Message) -> io::Result<Passage> {
        let file = message.fds.pop().filter(|_| message.fds.is_empty());
        let file = file.ok_or_else(|| invalid("the dirty log needs exactly one file"))?;
        let (size, offset) = (message.payload_u64(0), message.payload_u64(8));
        let (share, wake) = (self.backend.guards(), self.backend.lost_event().as_fd());
        let file = LogFile::open(file.into(), offset, size, share, wake)?;
        refuse_if(
            !file.reaches(end_of(&self.slots)),
            "the dirty log is smaller than guest memory",
        )?;
        self.backend.log().set_file(file);
        let words = [0, 4, 8, 12].map(|at| message.payload_word(at));
        Ok(Passage::Answer(Message::reply(
            request::SET_LOG_BASE,
            &words,
        )))
    }

    /// Payload: `ring u32, size u32`.
    fn set_ring_size(&mut self, message: &Message) -> io::Result<Passage> {
        let size = message.payload_word(4);
        if !size.is_power_of_two() || size as usize > MAX_QUEUE_SIZE {
            let text = format!(
                "a ring of {size} entries: it must be a power of two, {MAX_QUEUE_SIZE} at most (crosvm: \
                 `--vhost-user type=balloon,max-queue-size={MAX_QUEUE_SIZE},...`, QEMU: `vq_size={MAX_QUEUE_SIZE}`, \
                 Cloud Hypervisor: `queue_sizes=[...]`)"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let ring = self.ring(message.payload_word(0))?;
        refuse_if(
            ring.started && ring.size != size,
            "the size of a started ring cannot be changed",
        )?;
        ring.size = size;
        Ok(Passage::Pass)
    }

    /// Payload: `ring u32, flags u32`, then 8 bytes each: the addresses of descriptors, used ring and available ring,
    /// and where the used ring is logged.
    fn set_ring_addresses(&mut self, message: &Message) -> io::Result<Passage> {
        let addresses = [8, 16, 24].map(|at| message.payload_u64(at));
        let number = message.payload_word(0);
        let logged = message.payload_word(4) & VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits();
        let log = (logged != 0).then(|| message.payload_u64(32));
        let known = addresses.iter().all(|address| {
            let inside = |slot: &Slot| address.wrapping_sub(slot.user) < slot.size;
            self.slots.iter().any(inside)
        });
        refuse_if(!known, "the ring lies outside guest memory")?;
        let ring = self.ring(number)?;
        let known = ring.addresses.filter(|_| ring.started);
        if known.is_some_and(|known| known != addresses) {
            return Err(invalid("a started ring cannot be moved"));
        }
        ring.addresses = Some(addresses);
        let balloon = self.backend.balloon();
        balloon.log_used_ring(number as usize, self.backend.log(), log);
        // The crate would read the used ring's index again, while it is being written.
        Ok(if known.is_some() {
            Passage::Done
        } else {
            Passage::Pass
        })
    }

    /// Payload: `ring u8`, and bit 8 if no file descriptor comes along.
    fn set_kick(&mut self, message: &Message) -> io::Result<Passage> {
        let [kick] = &message.fds[..] else {
            return Err(invalid("the ring has no kick, and polling is not offered"));
        };
        refuse_if(!is_eventfd(kick), "the kick is not an eventfd")?;
        unblock(kick)?;
        self.settle_changes(false);
        let ring = self.ring(message.payload_word(0) & 0xff)?;
        refuse_if(ring.started, "the kick of a started ring cannot be changed")?;
        ring.started = true;
        Ok(Passage::Pass)
    }

    /// Payload: `offset u32, size u32, flags u32` and bytes. QEMU marks a migration's write with the flag that other
    /// front ends set for the guest's own writes. So only the crate's flag for migration makes read-only fields
    /// writable.
    fn set_config(&mut self, message: &Message) -> io::Result<Passage> {
        let (offset, size) = (message.payload_word(0), message.payload_word(4));
        let bytes = message.payload().get(CONFIG_HEADER_BYTES..);
        let bytes = bytes.unwrap_or_default();
        refuse_if(
            bytes.len() != size as usize,
            "the write has another size than announced",
        )?;
        let migration = VhostUserConfigFlags::LIVE_MIGRATION.bits();
        let mut balloon = self.backend.balloon();
        if message.payload_word(8) & migration != 0 {
            balloon.restore_config(offset, bytes);
        } else {
            balloon.write_config(offset, bytes);
        }
        Ok(Passage::Done)
    }

    fn keep_channel(&self, message: &mut Message) -> io::Result<Passage> {
        let socket = message.fds.pop().filter(|_| message.fds.is_empty());
        let socket = socket.filter(|socket| {
            socket_domain(socket) == Ok(AddressFamily::UNIX)
                && socket_type(socket) == Ok(SocketType::STREAM)
        });
        let socket = socket
            .ok_or_else(|| invalid("configuration changes need exactly one unix stream socket"))?;
        self.channel.set(socket);
        self.backend.balloon().channel_came();
        Ok(Passage::Done)
    }

    fn ring(&mut self, number: u32) -> io::Result<&mut RingState> {
        self.rings
            .get_mut(number as usize)
            .ok_or_else(|| invalid("there is no such ring"))
    }
}

/// The region at byte `at` of the payload.
fn region(message: &Message, at: usize) -> Slot {
    let [start, size, user] = [at, at + 8, at + 16].map(|at| message.payload_u64(at));
    Slot { start, size, user }
}

/// The region at byte `at` of the payload, if `file` is long enough for it.
fn slot_of(message: &Message, at: usize, file: &OwnedFd) -> io::Result<Slot> {
    let slot = region(message, at);
    refuse_unfit(file, message.payload_u64(at + 24), slot.size)?;
    if slot.start.checked_add(slot.size).is_none() || slot.user.checked_add(slot.size).is_none() {
        return Err(invalid("a memory region ends beyond the last address"));
    }
    Ok(slot)
}

fn refuse_overlap(slots: &[Slot], new: Slot) -> io::Result<()> {
    let overlaps = |slot: &Slot| {
        new.start < slot.start.saturating_add(slot.size) && slot.start < new.start + new.size
    };
    match slots.iter().any(overlaps) {
        true => Err(invalid("memory regions overlap")),
        false => Ok(()),
    }
}

/// The guest-physical address after the last byte.
fn end_of(slots: &[Slot]) -> u64 {
    let ends = slots
        .iter()
        .map(|slot| slot.start.saturating_add(slot.size));
    ends.max().unwrap_or(0)
}

/// Makes `file` non-blocking.
fn unblock(file: &OwnedFd) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    Ok(fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}

fn refuse_if(condition: bool, text: &'static str) -> io::Result<Passage> {
    if condition {
        return Err(invalid(text));
    }
    Ok(Passage::Pass)
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
