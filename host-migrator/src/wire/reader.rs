// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The receiving direction of a connection.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::stop::StopFlag;
use super::tls::{Inbound, TlsError, is_tls_record};
use super::wait::{Wait, drain, silent};

/// The receiving direction.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
    patience: Duration,
    /// When the peer's last byte was read.
    heard: Instant,
    /// Decrypts what arrives.
    tls: Option<Box<Inbound>>,
    /// Nothing was read yet.
    fresh: bool,
}

impl Reader {
    pub(super) fn new(
        socket: Arc<OwnedFd>,
        stop: StopFlag,
        patience: Duration,
        tls: Option<Box<Inbound>>,
    ) -> Self {
        Self {
            socket,
            stop,
            patience,
            heard: Instant::now(),
            fresh: tls.is_none(),
            tls,
        }
    }

    pub(crate) fn set_stop(&mut self, stop: StopFlag) {
        self.stop = stop;
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// An error if the peer has sent no byte for longer than the patience. For use when nothing is there to be read.
    pub(crate) fn check_heard(&self) -> io::Result<()> {
        if self.heard.elapsed() < self.patience {
            Ok(())
        } else {
            Err(silent(self.patience))
        }
    }

    /// Fills `bytes`.
    pub(crate) fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read(&mut bytes[filled..])? {
                0 if self.fresh && is_tls_record(&bytes[..filled]) => {
                    return Err(TlsError::NotExpected.into());
                }
                0 => return Err(hung_up()),
                count => filled += count,
            }
        }
        if std::mem::take(&mut self.fresh) && is_tls_record(bytes) {
            return Err(TlsError::NotExpected.into());
        }
        Ok(())
    }

    /// The socket, and a wait for it.
    ///
    /// # Errors
    /// If it is encrypted: then only TLS knows what its bytes mean.
    pub(super) fn plain(&self) -> io::Result<(&OwnedFd, Wait<'_>)> {
        match self.tls {
            None => Ok((
                &self.socket,
                Wait::new(&self.socket, &self.stop, self.patience),
            )),
            Some(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn heard_something(&mut self) {
        self.heard = Instant::now();
    }

    /// Waits for at least one byte; 0 is the peer's end.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            let wait = Wait::new(&self.socket, &self.stop, self.patience);
            let count = wait.receive(bytes)?;
            self.heard = Instant::now();
            return Ok(count);
        };
        loop {
            let count = tls.take(bytes)?;
            if count > 0 || tls.is_closed() {
                return Ok(count);
            }
            let room = tls.room(bytes.len());
            let wait = Wait::new(&self.socket, &self.stop, self.patience);
            let count = wait.receive(room)?;
            if count == 0 {
                return Err(TlsError::Cut.into());
            }
            tls.arrived(count);
            self.heard = Instant::now();
        }
    }

    /// Whether the peer has sent something or hung up. Does not wait.
    pub(crate) fn is_ready(&mut self) -> bool {
        let Some(tls) = &mut self.tls else {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            return !matches!(
                recv(&*self.socket, &mut [0], flags),
                Err(Errno::AGAIN | Errno::INTR)
            );
        };
        loop {
            // A record may bring no bytes for the reader, but new keys.
            if tls.is_ready() {
                return true;
            }
            match recv(&*self.socket, tls.room(1), RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => return false,
                // The next read reports it.
                Err(_) | Ok((_, 0)) => return true,
                Ok((_, count)) => {
                    tls.arrived(count);
                    self.heard = Instant::now();
                }
            }
        }
    }

    /// Reads and discards what has arrived. Nothing can be read afterwards. Does not wait.
    pub(crate) fn forget_received(&mut self) {
        let mut bytes = [0; 4096];
        // Bounded, because a peer may flood this side.
        for _ in 0..1024 {
            if !matches!(
                recv(&*self.socket, &mut bytes, RecvFlags::DONTWAIT),
                Ok((_, 1..))
            ) {
                return;
            }
        }
    }

    /// Reads and discards what still arrives, up to the peer's end or for `time`. Nothing can be read afterwards.
    pub(crate) fn drain(&mut self, time: Duration) {
        drain(&self.socket, &self.stop, time);
    }
}

pub(super) fn hung_up() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the other side has hung up")
}
