// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection. It assembles frames from arriving bytes, and sends answers when there is room. Nothing here blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use spec::control::{ControlError, HEADER_BYTES, Header, MAX_PAYLOAD, Refusal, Reply};

use super::page_map_writer::PageMapWriter;
use super::peer::{Peer, Response};
use crate::sockets;
use crate::vhost_user::backend::Backend;

/// How long the rest of a frame may take to arrive, and how long a reply may wait to be read.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    stream: UnixStream,
    peer: Peer,
    input: Input,
    output: Option<Output>,
    /// The page map that is being written for this connection, and the number of its request.
    page_map: Option<(PageMapWriter, u32)>,
    /// The deadline for the rest of a frame, or for room for a reply.
    deadline: Option<Instant>,
    /// When bytes last arrived.
    heard: Instant,
    /// The client has sent an invalid request: the connection is closed after the answer.
    ends: bool,
    over: bool,
}

/// The part of a frame that has arrived.
struct Input {
    bytes: [u8; HEADER_BYTES + MAX_PAYLOAD],
    filled: usize,
    header: Option<Header>,
    /// The file descriptor of the frame. If there are several, none is kept.
    fd: Option<OwnedFd>,
    fds: usize,
}

/// The part of a reply that was not sent yet.
struct Output {
    frame: [u8; HEADER_BYTES + MAX_PAYLOAD],
    length: usize,
    sent: usize,
    fd: Option<OwnedFd>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            peer: Peer::default(),
            input: Input::new(),
            output: None,
            page_map: None,
            deadline: None,
            heard: Instant::now(),
            ends: false,
            over: false,
        })
    }

    /// Whether the connection is the migrator's.
    pub(super) fn migrates(&self) -> bool {
        self.peer.migrates()
    }

    /// When there are too many connections, the one with the lowest value is closed first.
    pub(super) fn standing(&self) -> (bool, Instant) {
        (self.peer.has_greeted(), self.heard)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn waits_for(&self) -> PollFlags {
        match (&self.output, &self.page_map) {
            (Some(_), _) => PollFlags::OUT,
            (None, Some(_)) => PollFlags::empty(),
            (None, None) => PollFlags::IN,
        }
    }

    /// Whether there is work that need not wait for the client.
    pub(super) fn is_busy(&self) -> bool {
        self.page_map.is_some()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Ends the connection. The end of the migrator's is worth a warning.
    pub(super) fn end(&mut self, why: impl std::fmt::Display) {
        let level = match self.peer.migrates() {
            true => log::Level::Warn,
            false => log::Level::Debug,
        };
        log::log!(level, "a control connection ends: {why}");
        self.over = true;
    }

    /// Tells the device that the peer has gone. Returns `false` if the device is busy and must be told again.
    pub(super) fn gone(&mut self, backend: &Backend, patience: Duration) -> bool {
        self.peer.gone(backend, patience)
    }

    /// The peer, whose end the device must still be told.
    pub(super) fn into_peer(self) -> Peer {
        self.peer
    }

    /// Reads a request and answers it, writes a piece of a page map, or sends the rest of an answer. Does only what is
    /// possible without waiting.
    pub(super) fn turn(&mut self, backend: &Backend, another_migrates: bool) {
        self.heard = Instant::now();
        let result = match (&self.output, &self.page_map) {
            (Some(_), _) => self.send(),
            (None, Some(_)) => self.write_page_map(backend),
            (None, None) => self.receive(backend, another_migrates),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.deadline.get_or_insert(self.heard + PATIENCE);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end(error),
            Ok(()) => {}
        }
    }

    fn receive(&mut self, backend: &Backend, another_migrates: bool) -> io::Result<()> {
        while !self.input.is_whole() {
            let filled = self.input.filled;
            match self.input.fill(&self.stream) {
                Ok(0) if filled == 0 => {
                    self.over = true;
                    return Ok(());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                // The time between two frames is not limited.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && filled == 0 => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            if let Err(error) = self.input.read_header() {
                return self.refuse_and_end(0, Refusal::BadFrame, error);
            }
        }
        let input = std::mem::replace(&mut self.input, Input::new());
        let Some(header) = input.header else {
            return Ok(());
        };
        let payload = &input.bytes[HEADER_BYTES..input.filled];
        let sequence = header.sequence;
        self.deadline = None;
        let fds = (input.fds, input.fd);
        match self
            .peer
            .answer(&header, payload, fds, backend, another_migrates)
        {
            Response::Reply(reply) => self.reply(sequence, *reply, None),
            Response::Last(refusal, error) => self.refuse_and_end(sequence, refusal, error),
            Response::PageMap(writer) => {
                self.page_map = Some((writer, sequence));
                Ok(())
            }
        }
    }

    fn write_page_map(&mut self, backend: &Backend) -> io::Result<()> {
        let Some((writer, sequence)) = &mut self.page_map else {
            return Ok(());
        };
        let Some(written) = writer.go_on(backend) else {
            return Ok(());
        };
        let sequence = *sequence;
        self.page_map = None;
        match written {
            Ok((reply, fd)) => self.reply(sequence, reply, Some(fd)),
            Err(refusal) => self.reply(sequence, Reply::Refused(refusal), None),
        }
    }

    fn refuse_and_end(
        &mut self,
        sequence: u32,
        refusal: Refusal,
        error: impl std::fmt::Display,
    ) -> io::Result<()> {
        log::debug!("a control connection is closed: {error}");
        self.ends = true;
        self.reply(sequence, Reply::Refused(refusal), None)
    }

    fn reply(&mut self, sequence: u32, reply: Reply, fd: Option<OwnedFd>) -> io::Result<()> {
        self.deadline = None;
        self.output = Some(Output::new(reply, sequence, fd));
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        if let Some(output) = &mut self.output {
            while !output.send(&self.stream)? {}
        }
        self.output = None;
        self.deadline = None;
        self.over |= self.ends;
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Input {
    fn new() -> Self {
        Self {
            bytes: [0; HEADER_BYTES + MAX_PAYLOAD],
            filled: 0,
            header: None,
            fd: None,
            fds: 0,
        }
    }

    /// The length of the frame, as far as it is known. Bytes of the next frame are not read.
    fn length(&self) -> usize {
        HEADER_BYTES + self.header.map_or(0, |header| header.length as usize)
    }

    fn is_whole(&self) -> bool {
        self.header.is_some() && self.filled == self.length()
    }

    /// Reads what has arrived, up to the end of the frame. Returns how many bytes that were.
    fn fill(&mut self, stream: &UnixStream) -> io::Result<usize> {
        let length = self.length();
        let mut fds = Vec::new();
        let count = sockets::receive_some(stream, &mut self.bytes[self.filled..length], &mut fds)?;
        self.filled += count;
        self.fds += fds.len();
        self.fd = match self.fds {
            1 => self.fd.take().or_else(|| fds.pop()),
            _ => None,
        };
        Ok(count)
    }

    fn read_header(&mut self) -> Result<(), ControlError> {
        if self.header.is_none()
            && let Some(bytes) = self.bytes[..self.filled].first_chunk()
        {
            self.header = Some(Header::from_bytes(bytes)?);
        }
        Ok(())
    }
}

impl Output {
    fn new(reply: Reply, sequence: u32, fd: Option<OwnedFd>) -> Self {
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = reply.encode(sequence, &mut frame);
        Self {
            frame,
            length,
            sent: 0,
            fd,
        }
    }

    /// Sends as much as there is room for. Returns `true` when everything was sent.
    fn send(&mut self, stream: &UnixStream) -> io::Result<bool> {
        let rest = &self.frame[self.sent..self.length];
        self.sent += sockets::send_some(stream, rest, self.fd.as_slice())?;
        self.fd = None;
        Ok(self.sent == self.length)
    }
}
