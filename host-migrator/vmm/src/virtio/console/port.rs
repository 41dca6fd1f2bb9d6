// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port: moves bytes between the guest's queues and the socket, a bounded number at a time.
//!
//! The port stores no bytes. The guest's bytes stay in its buffers until the socket takes them, and the host's bytes stay
//! in the socket until the guest has a buffer for them. A side that does not read blocks only the other side.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SendFlags;
use virtio_queue::{Error, Reader};
use vm_memory::bitmap::BitmapSlice;

use super::control::{MESSAGE_BYTES, PortState};
use super::ring::{Chain, DriverRing};
use crate::memory::OwnMemory;

/// Queues: a pair for the port, and a pair for messages about it.
pub const QUEUES: usize = 4;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;

/// The most chains of a queue in one turn.
const TURN_CHAINS: usize = 16;
/// The most bytes from the guest in one turn.
const TURN_BYTES: usize = 256 << 10;
/// How many bytes are copied at a time.
const PIECE: usize = 16 << 10;

/// The port.
#[derive(Debug)]
pub struct Port {
    rings: [Option<DriverRing>; QUEUES],
    state: PortState,
    /// Bytes of the transmit queue's next chain that the host has received.
    taken: u32,
    host: Option<Arc<UnixStream>>,
    piece: Box<[u8; PIECE]>,
    bad_buffers: u64,
}

/// What is left to do after a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Buffers were returned, so the guest must be interrupted.
    pub interrupt: bool,
    /// There is more to do at once.
    pub again: bool,
    /// The guest has buffers for bytes from the host: wait until there are some.
    pub read: bool,
    /// The guest has bytes that the host did not accept: wait until it does.
    pub write: bool,
}

/// The result of sending a chain of the transmit queue.
enum Sent {
    /// All of it was sent.
    Whole,
    /// The host accepts no more now.
    Blocked,
    /// The limit of this turn is reached.
    Enough,
}

impl Default for Port {
    fn default() -> Self {
        Self {
            rings: Default::default(),
            state: PortState::default(),
            taken: 0,
            host: None,
            piece: Box::new([0; PIECE]),
            bad_buffers: 0,
        }
    }
}

impl Port {
    /// Starts serving a driver. Queues without a ring do not run.
    pub fn start(&mut self, rings: [Option<DriverRing>; QUEUES], state: PortState, taken: u32) {
        self.rings = rings;
        self.state = state;
        self.taken = taken;
    }

    /// Stops a queue.
    pub fn stop_queue(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            *ring = None;
        }
    }

    /// Forgets the driver.
    pub fn reset(&mut self) {
        self.start(Default::default(), PortState::default(), 0);
        self.hang_up();
    }

    /// Whether a driver is served.
    pub fn in_use(&self) -> bool {
        self.rings.iter().any(Option::is_some)
    }

    /// The queues' positions, the driver's state, and the bytes sent of the next chain.
    pub fn positions(&self) -> ([u16; QUEUES], PortState, u32) {
        let position = |ring: &Option<DriverRing>| ring.as_ref().map_or(0, DriverRing::position);
        (self.rings.each_ref().map(position), self.state, self.taken)
    }

    /// Buffers of the guest that could not be used.
    pub fn bad_buffers(&self) -> u64 {
        self.bad_buffers
    }

    /// Whether the port should be connected to the host: the driver has set the port up, and knows that the last connection
    /// has ended.
    pub fn wants_host(&self) -> bool {
        self.host.is_none() && self.state.is_ready() && !self.state.believed_open()
    }

    /// Connects the port to `host`, which must be non-blocking.
    pub fn join(&mut self, host: UnixStream) {
        self.host = Some(Arc::new(host));
    }

    /// The connection to the host.
    pub fn host(&self) -> Option<Arc<UnixStream>> {
        self.host.clone()
    }

    /// Ends the connection to the host. The driver will be told.
    pub fn hang_up(&mut self) {
        self.host = None;
    }

    /// Moves what can be moved, within bounds.
    ///
    /// # Errors
    /// [`Error`] if a queue is invalid; then the driver must reset the device.
    pub fn turn(&mut self, memory: &OwnMemory) -> Result<Turn, Error> {
        let mut turn = Turn::default();
        self.hear(memory, &mut turn)?;
        self.transmit(memory, &mut turn)?;
        self.receive(memory, &mut turn)?;
        self.tell(memory, &mut turn)?;
        Ok(turn)
    }

    /// Takes the driver's messages.
    fn hear(&mut self, memory: &OwnMemory, turn: &mut Turn) -> Result<(), Error> {
        for _ in 0..TURN_CHAINS {
            let Some((ring, chain)) = next(&mut self.rings[CONTROL_TRANSMIT], memory)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let mut message = [0; MESSAGE_BYTES];
            match reader(chain, memory).map(|mut reader| reader.read_exact(&mut message)) {
                Some(Ok(())) => {
                    let was_open = self.state.is_open();
                    self.state.heard(message);
                    if was_open && !self.state.is_open() {
                        // The next program that opens the port gets a new connection.
                        self.host = None;
                    }
                }
                _ => self.bad_buffers += 1,
            }
            ring.give_back(memory, head, 0)?;
            turn.interrupt = true;
        }
        turn.again = true;
        Ok(())
    }

    /// Sends the driver the messages that are due.
    fn tell(&mut self, memory: &OwnMemory, turn: &mut Turn) -> Result<(), Error> {
        for _ in 0..TURN_CHAINS {
            let Some(message) = self.state.next_message(self.host.is_some()) else {
                return Ok(());
            };
            let Some((ring, chain)) = next(&mut self.rings[CONTROL_RECEIVE], memory)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let bytes = message.to_bytes();
            let written = write(chain, memory, &bytes);
            match written {
                Some(_) => self.state.told(message),
                None => self.bad_buffers += 1,
            }
            ring.give_back(memory, head, written.unwrap_or(0))?;
            turn.interrupt = true;
        }
        turn.again = true;
        Ok(())
    }

    /// Sends the guest's bytes to the host. Without a connection they are dropped.
    fn transmit(&mut self, memory: &OwnMemory, turn: &mut Turn) -> Result<(), Error> {
        let mut budget = TURN_BYTES;
        for _ in 0..TURN_CHAINS {
            let Some((ring, chain)) = next(&mut self.rings[TRANSMIT], memory)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let rest = reader(chain, memory)
                .and_then(|mut reader| reader.split_at(self.taken as usize).ok());
            let sent = match (rest, &self.host) {
                (Some(mut rest), Some(host)) => {
                    match send(
                        &mut rest,
                        host,
                        &mut *self.piece,
                        &mut budget,
                        &mut self.taken,
                    ) {
                        Ok(sent) => sent,
                        Err(error) => {
                            log::debug!("agent port: {error}");
                            self.host = None;
                            Sent::Whole
                        }
                    }
                }
                (Some(_), None) => Sent::Whole,
                (None, _) => {
                    self.bad_buffers += 1;
                    Sent::Whole
                }
            };
            match sent {
                Sent::Whole => {
                    ring.give_back(memory, head, 0)?;
                    self.taken = 0;
                    turn.interrupt = true;
                }
                Sent::Blocked => {
                    ring.put_back();
                    turn.write = true;
                    return Ok(());
                }
                Sent::Enough => {
                    ring.put_back();
                    turn.again = true;
                    return Ok(());
                }
            }
        }
        turn.again = true;
        Ok(())
    }

    /// Brings the host's bytes to the guest, while a program there has the port open.
    fn receive(&mut self, memory: &OwnMemory, turn: &mut Turn) -> Result<(), Error> {
        for _ in 0..TURN_CHAINS {
            let Some(host) = self.host.as_deref().filter(|_| self.state.is_open()) else {
                return Ok(());
            };
            let Some((ring, chain)) = next(&mut self.rings[RECEIVE], memory)? else {
                return Ok(());
            };
            let head = chain.head_index();
            let room = room(chain.clone(), memory).min(PIECE);
            let mut written = None;
            if room > 0 {
                match (&mut &*host).read(&mut self.piece[..room]) {
                    Ok(count) if count > 0 => {
                        written = write(chain, memory, &self.piece[..count]);
                    }
                    Err(error) if is_nothing_yet(&error) => {
                        ring.put_back();
                        turn.read = true;
                        return Ok(());
                    }
                    ended => {
                        log::debug!("agent port: the host's end was closed: {ended:?}");
                        ring.put_back();
                        self.host = None;
                        return Ok(());
                    }
                }
            }
            self.bad_buffers += u64::from(written.is_none());
            ring.give_back(memory, head, written.unwrap_or(0))?;
            turn.interrupt = true;
        }
        turn.again = true;
        Ok(())
    }
}

/// The ring with its next chain, if it runs and has one.
fn next<'r, 'm>(
    ring: &'r mut Option<DriverRing>,
    memory: &'m OwnMemory,
) -> Result<Option<(&'r mut DriverRing, Chain<'m>)>, Error> {
    let Some(ring) = ring else {
        return Ok(None);
    };
    let chain = ring.take(memory)?;
    Ok(chain.map(|chain| (ring, chain)))
}

/// A reader of the chain's readable part; `None` if it is not wholly in guest memory.
fn reader<'m>(chain: Chain<'m>, memory: &'m OwnMemory) -> Option<Reader<'m, impl BitmapSlice>> {
    chain.reader(memory).ok()
}

/// How many bytes may be written to a chain; 0 if it is not wholly in guest memory.
fn room(chain: Chain<'_>, memory: &OwnMemory) -> usize {
    let writer = chain.writer(memory);
    writer.map_or(0, |writer| writer.available_bytes())
}

/// Writes all of `bytes` to a chain. Returns their number; `None` if there is no room.
fn write(chain: Chain<'_>, memory: &OwnMemory, bytes: &[u8]) -> Option<u32> {
    let mut writer = chain.writer(memory).ok()?;
    if writer.available_bytes() < bytes.len() {
        return None;
    }
    writer.write_all(bytes).ok()?;
    u32::try_from(bytes.len()).ok()
}

/// Sends the bytes in `rest` to `host`, and counts them in `taken`.
fn send(
    rest: &mut impl Read,
    host: &UnixStream,
    piece: &mut [u8],
    budget: &mut usize,
    taken: &mut u32,
) -> io::Result<Sent> {
    loop {
        if *budget == 0 {
            return Ok(Sent::Enough);
        }
        let most = piece.len().min(*budget);
        let count = rest.read(&mut piece[..most])?;
        if count == 0 {
            return Ok(Sent::Whole);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match rustix::net::send(host, &piece[..count], flags) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        *budget -= sent;
        // A chain has less than 4 GiB.
        *taken = taken.saturating_add(sent as u32);
        if sent < count {
            return Ok(Sent::Blocked);
        }
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
