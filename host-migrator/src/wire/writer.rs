// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sending direction of a connection.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::stop::StopFlag;
use super::tls::{Outbound, Parts};
use super::wait::{Wait, try_send};

/// The sending direction. It ends when this is dropped; [`Writer::finish`] makes sure that the peer hears of it.
#[derive(Debug)]
pub(crate) struct Writer {
    line: Line,
    /// Encrypts what is sent.
    tls: Option<Box<Outbound>>,
}

/// What a wait needs.
#[derive(Debug)]
struct Line {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
    patience: Duration,
}

/// A write that failed.
#[derive(Debug)]
pub(crate) struct WriteError {
    /// How many bytes the kernel had taken: with TLS, of the records that carry what was to be written. If it is 0, none of them
    /// has left this side or ever will.
    pub(crate) written: usize,
    pub(crate) source: io::Error,
}

impl Writer {
    pub(super) fn new(
        socket: Arc<OwnedFd>,
        stop: StopFlag,
        patience: Duration,
        tls: Option<Box<Outbound>>,
    ) -> Self {
        let line = Line {
            socket,
            stop,
            patience,
        };
        Self { line, tls }
    }

    pub(crate) fn set_stop(&mut self, stop: StopFlag) {
        self.line.stop = stop;
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.line.patience = patience;
    }

    /// Writes all `parts` in few system calls.
    pub(crate) fn write_all(&mut self, mut parts: &mut [IoSlice<'_>]) -> Result<(), WriteError> {
        if let Some(tls) = &mut self.tls {
            return self.line.encrypt_all(tls, Parts::new(parts));
        }
        let mut written = 0;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let count = (self.line.send(parts)).map_err(|source| WriteError { written, source })?;
            written += count;
            IoSlice::advance_slices(&mut parts, count);
        }
        Ok(())
    }

    /// The socket, and a wait for it.
    ///
    /// # Errors
    /// If it is encrypted: then only TLS may write to it.
    pub(super) fn plain(&self) -> io::Result<(&OwnedFd, Wait<'_>)> {
        let Line {
            socket,
            stop,
            patience,
        } = &self.line;
        match self.tls {
            None => Ok((socket, Wait::new(socket, stop, *patience))),
            Some(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Writes as much of `bytes` as the kernel takes at once. Returns how much: 0 also if the connection has failed.
    /// The next [`Writer::write_all`] reports that.
    ///
    /// With TLS a record is made of all of them or of none. What the kernel does not take of it is sent before anything else.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> usize {
        let Some(tls) = &mut self.tls else {
            return try_send(&self.line.socket, bytes);
        };
        if !self.line.try_flush(tls) || !self.line.has_room() {
            return 0;
        }
        match tls.seal(&mut Parts::new(&[IoSlice::new(bytes)])) {
            Ok(_) => {
                self.line.try_flush(tls);
                bytes.len()
            }
            Err(_) => 0,
        }
    }

    /// Ends the sending direction. The peer sees the end after all that was sent.
    pub(crate) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls
            && tls.close()
        {
            // Without the close the peer takes the end for a cut connection, which it is then.
            let _ = self.line.flush(tls, 0);
        }
        let _ = rustix::net::shutdown(&*self.line.socket, rustix::net::Shutdown::Write);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(tls) = &mut self.tls
            && tls.close()
        {
            self.line.try_flush(tls);
        }
    }
}

impl Line {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Wait::new(&self.socket, &self.stop, self.patience).send(parts)
    }

    /// After an error nothing can be written any more.
    fn encrypt_all(&self, tls: &mut Outbound, parts: Parts<'_>) -> Result<(), WriteError> {
        let mut written = 0;
        self.encrypt(tls, parts, &mut written).map_err(|source| {
            tls.give_up();
            WriteError { written, source }
        })
    }

    /// Counts in `written` the bytes that the kernel has taken of the records that carry `parts`.
    fn encrypt(
        &self,
        tls: &mut Outbound,
        mut parts: Parts<'_>,
        written: &mut usize,
    ) -> io::Result<()> {
        // Earlier records. None of the parts is in them.
        self.flush(tls, 0).1?;
        while !parts.is_empty() {
            let earlier = tls.seal(&mut parts)?;
            let (own, sent) = self.flush(tls, earlier);
            *written += own;
            sent?;
        }
        Ok(())
    }

    /// Sends the records that wait. Returns how many of their bytes after the first `earlier` ones the kernel has taken.
    fn flush(&self, tls: &mut Outbound, earlier: usize) -> (usize, io::Result<()>) {
        let mut taken = 0_usize;
        while !tls.waiting().is_empty() {
            match self.send(&[IoSlice::new(tls.waiting())]) {
                Ok(count) => {
                    tls.sent(count);
                    taken += count;
                }
                Err(error) => return (taken.saturating_sub(earlier), Err(error)),
            }
        }
        (taken.saturating_sub(earlier), Ok(()))
    }

    /// Sends what the kernel takes at once of the records that wait. Returns whether none waits any more.
    fn try_flush(&self, tls: &mut Outbound) -> bool {
        while !tls.waiting().is_empty() {
            match try_send(&self.socket, tls.waiting()) {
                0 => return false,
                count => tls.sent(count),
            }
        }
        true
    }

    /// Whether the kernel takes something at once.
    fn has_room(&self) -> bool {
        let mut polled = [PollFd::new(&*self.socket, PollFlags::OUT)];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1..))
    }
}
