// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hints from a balloon device behind a control socket (`spec/control-protocol.md`).

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use spec::control::{EpochReport, HEADER_BYTES, Header, MAX_PAYLOAD, Reply, Request, VERSION};
use spec::hint_map::{HintMap, HintPhase};

use super::map_file::{MapFile, MapMemory};
use super::{HintError, HintSource};

/// A device that does not answer in this time is done without.
const PATIENCE: Duration = Duration::from_secs(1);

/// The hints of a balloon device.
#[derive(Debug)]
pub struct DeviceHints {
    path: PathBuf,
    connection: Option<Connection>,
    map: Option<HintMap<MapMemory>>,
}

impl DeviceHints {
    /// Connects to the device's control socket at `path`.
    ///
    /// # Errors
    /// [`HintError`] if no device answers there, or speaks another version.
    pub fn connect(path: impl Into<PathBuf>) -> Result<Self, HintError> {
        let path = path.into();
        Ok(Self {
            connection: Some(Connection::open(&path)?),
            path,
            map: None,
        })
    }

    /// Asks, and drops the connection if the device fails to answer: a late answer must not be taken for
    /// that to the next question. The device sees the end, and lets the guest go.
    fn ask(&mut self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<Reply, HintError> {
        let connection = self.connection.as_mut().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, "the connection was given up")
        })?;
        let result = connection.ask(request, fd);
        if matches!(result, Err(HintError::Io(_) | HintError::Protocol(_))) {
            self.connection = None;
        }
        result
    }
}

impl HintSource for DeviceHints {
    fn prepare(&mut self, pages: u64) -> Result<(), HintError> {
        self.map = None;
        if self.connection.is_none() {
            self.connection = Some(Connection::open(&self.path)?);
        }
        let file = MapFile::new(pages)?;
        let request = Request::SetHintMap {
            bytes: file.bytes(),
        };
        match self.ask(request, Some(file.as_fd()))? {
            Reply::Ok => {
                self.map = Some(file.into_map());
                Ok(())
            }
            other => Err(unexpected(request, other)),
        }
    }

    fn open(&mut self, epoch: u64) -> Result<(), HintError> {
        let request = Request::Open { epoch };
        match self.ask(request, None)? {
            Reply::Opened { .. } => Ok(()),
            other => Err(unexpected(request, other)),
        }
    }

    fn load(&self, index: usize) -> u64 {
        self.map.as_ref().map_or(0, |map| map.load(index))
    }

    fn phase(&self) -> HintPhase {
        self.map.as_ref().map_or(HintPhase::Closed, HintMap::phase)
    }

    fn hinted_pages(&self) -> u64 {
        self.map.as_ref().map_or(0, HintMap::hinted_pages)
    }

    fn close(&mut self, epoch: u64) -> Result<EpochReport, HintError> {
        let request = Request::Close { epoch };
        match self.ask(request, None)? {
            Reply::Closed(report) if report.epoch == epoch => Ok(report),
            other => Err(unexpected(request, other)),
        }
    }

    fn take(&mut self, index: usize) -> u64 {
        self.map.as_ref().map_or(0, |map| map.take(index))
    }

    fn done(&mut self) -> Result<(), HintError> {
        self.map = None;
        if self.connection.is_none() {
            // The device noticed, and has told the guest.
            return Ok(());
        }
        match self.ask(Request::Done, None)? {
            Reply::Ok => Ok(()),
            other => Err(unexpected(Request::Done, other)),
        }
    }
}

fn unexpected(request: Request, reply: Reply) -> HintError {
    HintError::Protocol(format!("{reply:?} is no answer to {request:?}"))
}

/// A device that has said hello.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    sequence: u32,
}

impl Connection {
    fn open(path: &Path) -> Result<Self, HintError> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            stream,
            sequence: 0,
        };
        let hello = Request::Hello { version: VERSION };
        match connection.ask(hello, None)? {
            Reply::Hello {
                version: VERSION, ..
            } => Ok(connection),
            other => Err(unexpected(hello, other)),
        }
    }

    fn ask(&mut self, request: Request, fd: Option<BorrowedFd<'_>>) -> Result<Reply, HintError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = request.encode(self.sequence, &mut frame);
        self.send(&frame[..length], fd)?;
        let deadline = Instant::now() + PATIENCE;
        let mut header = [0; HEADER_BYTES];
        self.receive(&mut header, deadline)?;
        let protocol = |error: spec::control::ControlError| HintError::Protocol(error.to_string());
        let header = Header::from_bytes(&header).map_err(protocol)?;
        let mut payload = [0; MAX_PAYLOAD];
        let payload = &mut payload[..header.length as usize];
        self.receive(payload, deadline)?;
        if header.sequence != self.sequence {
            let text = format!("answer {} to request {}", header.sequence, self.sequence);
            return Err(HintError::Protocol(text));
        }
        match Reply::decode(&header, payload).map_err(protocol)? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    fn send(&mut self, frame: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds: &[BorrowedFd<'_>] = fd.as_slice();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            // The space was made for one file descriptor.
            let fits = message.push(SendAncillaryMessage::ScmRights(fds));
            debug_assert!(fits);
        }
        let parts = [IoSlice::new(frame)];
        let sent = sendmsg(&self.stream, &parts, &mut message, SendFlags::NOSIGNAL)?;
        self.stream.write_all(&frame[sent..])
    }

    /// Fills `bytes` before `deadline`, however slowly they come.
    fn receive(&mut self, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
