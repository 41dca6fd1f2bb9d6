// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A wait for a socket, which always ends: with data, a closed socket, a stop by another thread, a peer that has been
//! silent for too long, or a deadline.

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::stop::StopFlag;

/// How often a blocked read or write checks whether another thread has stopped it.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// One wait for a socket. Its system calls return after at most [`TICK`].
pub(super) struct Wait<'a> {
    socket: &'a OwnedFd,
    stop: &'a StopFlag,
    patience: Duration,
    /// Since when the peer has been silent, and how many of its bytes were unread then.
    silence: Option<(Instant, u64)>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(socket: &'a OwnedFd, stop: &'a StopFlag, patience: Duration) -> Self {
        Self {
            socket,
            stop,
            patience,
            silence: None,
        }
    }

    /// Receives at least one byte; 0 is the peer's end.
    pub(super) fn receive(self, bytes: &mut [u8]) -> io::Result<usize> {
        let socket = self.socket;
        self.until_ready(|| Ok(recv(socket, &mut *bytes, RecvFlags::empty())?.0))
    }

    /// Sends at least one byte of `parts`. Returns how many the kernel has taken.
    pub(super) fn send(self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let socket = self.socket;
        self.until_ready(|| {
            let mut no_fds = SendAncillaryBuffer::default();
            Ok(sendmsg(socket, parts, &mut no_fds, SendFlags::NOSIGNAL)?)
        })
    }

    pub(super) fn until_ready(
        mut self,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            self.stop.check_deadline()?;
            let begin = Instant::now();
            match call() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.silence_since(begin).elapsed() >= self.patience {
                        return Err(silent(self.patience));
                    }
                }
                result => return result,
            }
            self.stop.check()?;
        }
    }

    /// Since when nothing has arrived from the peer: one that takes nothing may still send heartbeats. The call that
    /// began at `begin` moved no byte.
    fn silence_since(&mut self, begin: Instant) -> Instant {
        // If the socket cannot say what is unread, it has failed. The next call reports that.
        let unread = rustix::io::ioctl_fionread(self.socket).unwrap_or(0);
        match self.silence {
            Some((since, before)) if before == unread => since,
            known => {
                let since = known.map_or(begin, |_| Instant::now());
                self.silence = Some((since, unread));
                since
            }
        }
    }
}

/// The peer has sent or taken nothing for `patience`.
pub(super) fn silent(patience: Duration) -> io::Error {
    let text = format!("the other side was silent for {patience:?}");
    io::Error::new(ErrorKind::TimedOut, text)
}

/// Sends as much of `bytes` as the kernel takes at once. Returns how much: 0 also if the connection has failed.
pub(super) fn try_send(socket: &OwnedFd, bytes: &[u8]) -> usize {
    let mut no_fds = SendAncillaryBuffer::default();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut no_fds, flags).unwrap_or(0)
}

/// Reads and discards what still arrives, up to the peer's end or for a short time. If a socket is closed with unread data,
/// the kernel discards what it has still to send.
pub(super) fn drain(socket: &OwnedFd, stop: &StopFlag, time: Duration) {
    let end = Instant::now() + time;
    let mut bytes = vec![0; 64 << 10];
    while Instant::now() < end && !stop.is_raised() {
        match recv(socket, &mut bytes[..], RecvFlags::empty()) {
            Ok((_, 0)) => return,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
