// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client of the device's control protocol that sends whatever the test orders.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use spec::balloon::CommandId;
use spec::control::{
    EpochReport, HEADER_BYTES, Header, MAX_PAYLOAD, Refusal, Reply, Request, VERSION,
};

use crate::{PATIENCE, eventually};

/// The frame of `request`.
pub fn frame(request: Request, sequence: u32) -> Vec<u8> {
    let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
    let length = request.encode(sequence, &mut frame);
    frame[..length].to_vec()
}

/// A connection to the device's control socket.
#[derive(Debug)]
pub struct Client {
    /// The connection itself, for bytes that are not a request.
    pub stream: UnixStream,
    sequence: u32,
}

impl Client {
    /// Connects as soon as the device listens. Sends nothing.
    ///
    /// # Panics
    /// If it never listens.
    pub fn connect(control: &Path) -> Self {
        let stream = eventually("the control socket", || UnixStream::connect(control).ok());
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self {
            stream,
            sequence: 0,
        }
    }

    /// Sends the hello.
    ///
    /// # Panics
    /// If the device speaks another version.
    pub fn hello(&mut self) {
        let hello = self.ask(Request::Hello { version: VERSION });
        let same = |version| version == VERSION;
        assert!(
            matches!(hello, Reply::Hello { version, .. } if same(version)),
            "{hello:?}"
        );
    }

    /// Hands over a hint map of `bytes` bytes.
    ///
    /// # Panics
    /// If the device does not accept it.
    pub fn give_map(&mut self, file: OwnedFd, bytes: u64) {
        let taken = self.ask_with(Request::SetHintMap { bytes }, &[file]);
        assert_eq!(taken, Reply::Ok);
    }

    /// Opens an epoch.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn open(&mut self, epoch: u64) -> CommandId {
        match self.ask(Request::Open { epoch }) {
            Reply::Opened { command_id } => command_id,
            other => panic!("epoch {epoch} is not open: {other:?}"),
        }
    }

    /// The refusal to open an epoch.
    ///
    /// # Panics
    /// If the device opens it.
    pub fn open_refused(&mut self, epoch: u64) -> Refusal {
        match self.ask(Request::Open { epoch }) {
            Reply::Refused(refusal) => refusal,
            other => panic!("epoch {epoch} was not refused: {other:?}"),
        }
    }

    /// Closes an epoch.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn close(&mut self, epoch: u64) -> EpochReport {
        match self.ask(Request::Close { epoch }) {
            Reply::Closed(report) => report,
            other => panic!("epoch {epoch} is not closed: {other:?}"),
        }
    }

    /// The device's answer to `request`.
    ///
    /// # Panics
    /// If it does not answer, or answers something else.
    pub fn ask(&mut self, request: Request) -> Reply {
        self.ask_with(request, &[])
    }

    /// As [`Client::ask`], with `fds` attached to the request.
    ///
    /// # Panics
    /// As [`Client::ask`].
    pub fn ask_with(&mut self, request: Request, fds: &[OwnedFd]) -> Reply {
        self.sequence += 1;
        let frame = frame(request, self.sequence);
        let sent = send(&self.stream, &frame, fds);
        assert_eq!(sent, Ok(frame.len()), "the device reads");
        let (sequence, reply) = self.reply();
        assert_eq!(sequence, self.sequence);
        reply
    }

    /// Sends bytes that need not be a request.
    ///
    /// # Panics
    /// If the device has hung up.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the device reads");
    }

    /// The next reply and its number.
    ///
    /// # Panics
    /// If the device has hung up, or sends something else.
    pub fn reply(&mut self) -> (u32, Reply) {
        self.next_reply().expect("the device has not hung up")
    }

    /// As [`Client::reply`]; `None` if the device has hung up.
    ///
    /// # Panics
    /// If the device sends something else.
    pub fn next_reply(&mut self) -> Option<(u32, Reply)> {
        let mut header = [0; HEADER_BYTES];
        let (first, rest) = header.split_at_mut(1);
        if self.stream.read(first).expect("an answer in time") == 0 {
            return None;
        }
        self.stream.read_exact(rest).expect("a whole header");
        let header = Header::from_bytes(&header).expect("a header");
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).expect("a payload");
        let reply = Reply::decode(&header, &payload).expect("a reply");
        Some((header.sequence, reply))
    }

    /// Whether the device has hung up and nothing is left to read.
    pub fn is_hung_up_on(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

/// Sends `bytes`, with at most eight `fds` attached to the first of them.
fn send(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<usize> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(&fds));
        assert!(fits, "a message holds fewer file descriptors");
    }
    sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
}
