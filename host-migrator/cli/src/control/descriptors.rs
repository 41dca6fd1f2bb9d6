// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors that travel with a command over a control socket (SCM_RIGHTS).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use host_migrator::MAX_CHANNELS;
use spec_sockets::rights;

/// The most that a command takes: a control connection, and channels.
pub(super) const MOST: usize = 1 + MAX_CHANNELS as usize;

/// Sends `line` with `descriptors`, which remain the caller's.
pub(super) fn send(
    stream: &mut UnixStream,
    line: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    if descriptors.is_empty() {
        return stream.write_all(line);
    }
    if descriptors.len() > MOST {
        let text = format!("at most {MOST} descriptors can be sent");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let sent = rights::send_some(&*stream, line, &borrowed)?;
    stream.write_all(&line[sent..])
}

/// Reads a stream, and keeps the descriptors that came with what was read.
#[derive(Debug)]
pub(super) struct Receiving {
    stream: UnixStream,
    received: Vec<OwnedFd>,
}

impl Receiving {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            received: Vec::new(),
        }
    }

    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// The descriptors that have come since the last call, at most [`MOST`]; more are closed as they come.
    pub(super) fn take(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.received)
    }
}

impl Read for Receiving {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = rights::receive_some(&self.stream, bytes, &mut self.received)?;
        self.received.truncate(MOST);
        Ok(read)
    }
}
