// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The handshake: makes a session of a socket.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::{ClientConfig, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConfig, UnbufferedServerConnection};

use super::buffer::Buffer;
use super::counts::Counts;
use super::error::{TlsError, explain};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::session::{Session, Side, Step, starts_with_record};
use crate::wire::stop::StopFlag;
use crate::wire::wait::{Wait, drain, try_send};

/// How long the peer may take to hear why its handshake has failed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A handshake is given up after this time, however long its limit is.
const LONGEST: Duration = Duration::from_secs(3600);
/// The most bytes that may wait for the end of a handshake message.
const MOST_INCOMING: usize = 128 << 10;
/// A fatal alert without encryption, "unexpected message": tells a peer that has not begun a handshake that this side
/// speaks TLS.
const SPEAK_TLS: [u8; 7] = [21, 3, 3, 0, 2, 2, 10];

/// The connecting end: connections to one peer. Those after the first resume its session.
#[derive(Clone)]
pub(in crate::wire) struct Client {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    pub(super) counts: Arc<Counts>,
}

/// The accepting end.
#[derive(Clone)]
pub(in crate::wire) struct Server {
    pub(super) config: Arc<ServerConfig>,
    pub(super) counts: Arc<Counts>,
}

/// Both directions of a session.
pub(in crate::wire) type Directions = (Box<Inbound>, Box<Outbound>);

impl Client {
    /// Begins the handshake on `socket`, and waits for its end for at most `limit`. Afterwards the peer has accepted this side's
    /// certificate, too.
    ///
    /// # Errors
    /// A [`TlsError`], or why the wait has ended.
    pub(in crate::wire) fn shake(
        &self,
        socket: &OwnedFd,
        stop: &StopFlag,
        limit: Duration,
    ) -> io::Result<Directions> {
        let side = UnbufferedClientConnection::new(Arc::clone(&self.config), self.name.clone());
        let side = Side::Client(side.map_err(explain)?);
        Handshake::new(socket, stop, limit, side, true).run(&self.counts)
    }
}

impl Server {
    /// Waits for a handshake on `socket` for at most `limit`.
    ///
    /// # Errors
    /// A [`TlsError`], or why the wait has ended.
    pub(in crate::wire) fn shake(
        &self,
        socket: &OwnedFd,
        stop: &StopFlag,
        limit: Duration,
    ) -> io::Result<Directions> {
        let side = UnbufferedServerConnection::new(Arc::clone(&self.config));
        let side = Side::Server(side.map_err(explain)?);
        Handshake::new(socket, stop, limit, side, false).run(&self.counts)
    }
}

/// A handshake that is being made.
struct Handshake<'a> {
    socket: &'a OwnedFd,
    stop: &'a StopFlag,
    limit: Duration,
    until: Instant,
    side: Side,
    incoming: Vec<u8>,
    outgoing: Buffer,
    plain: Vec<u8>,
    /// Nothing has arrived.
    silent: bool,
    /// The peer's word that it accepts this side's certificate is missing: its first record after the handshake.
    awaits_word: bool,
}

impl<'a> Handshake<'a> {
    fn new(
        socket: &'a OwnedFd,
        stop: &'a StopFlag,
        limit: Duration,
        side: Side,
        awaits_word: bool,
    ) -> Self {
        let now = Instant::now();
        Self {
            socket,
            stop,
            limit,
            until: now + limit.min(LONGEST),
            side,
            incoming: Vec::new(),
            outgoing: Buffer::default(),
            plain: Vec::new(),
            silent: true,
            awaits_word,
        }
    }

    fn run(mut self, counts: &Counts) -> io::Result<Directions> {
        let complete = self.complete().and_then(|()| match self.side.knows_peer() {
            true => Ok(()),
            // rustls does not let it come to that.
            false => Err(TlsError::NoCertificate.into()),
        });
        match complete {
            Ok(()) => {
                counts.count(self.side.handshake_kind());
                let session = Arc::new(Session::new(self.side));
                let inbound = Inbound::new(Arc::clone(&session), &self.incoming, self.plain);
                Ok((Box::new(inbound), Box::new(Outbound::new(session))))
            }
            Err(error) => {
                self.refuse();
                Err(error)
            }
        }
    }

    fn complete(&mut self) -> io::Result<()> {
        let mut is_open = false;
        loop {
            let plain = &mut self.plain;
            let (done, step) =
                (self.side).step(&mut self.incoming, &mut self.outgoing, &mut |bytes| {
                    plain.extend_from_slice(bytes);
                });
            self.incoming.drain(..done);
            self.awaits_word &= !(is_open && done > 0);
            match step.map_err(explain)? {
                Step::Again => {}
                Step::Send => self.send()?,
                Step::Handshaking => self.receive()?,
                Step::Open => {
                    is_open = true;
                    // A session expects no piece of a handshake message.
                    if !self.awaits_word && !starts_with_record(&self.incoming) {
                        return Ok(());
                    }
                    self.receive()?;
                }
                Step::Closed => return Err(TlsError::HungUp.into()),
            }
        }
    }

    /// Tells the peer why its handshake has failed, so that it arrives.
    fn refuse(&mut self) {
        if self.silent {
            self.outgoing.clear();
            if matches!(self.side, Side::Server(_)) {
                self.outgoing.extend(&SPEAK_TLS);
            }
        } else {
            self.side.alert(&mut self.incoming, &mut self.outgoing);
        }
        // The socket has room, because a handshake sends little. If it has none, nobody listens.
        try_send(self.socket, self.outgoing.waiting());
        let _ = rustix::net::shutdown(self.socket, rustix::net::Shutdown::Write);
        drain(self.socket, self.stop, LAST_WORDS);
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.outgoing.waiting().is_empty() {
            let parts = [IoSlice::new(self.outgoing.waiting())];
            let sent = self.wait().send(&parts);
            let count = self.in_time(sent)?;
            self.outgoing.sent(count);
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        if self.incoming.len() > MOST_INCOMING {
            return Err(TlsError::TooLong.into());
        }
        let mut bytes = [0; 4096];
        let received = self.wait().receive(&mut bytes);
        match self.in_time(received)? {
            0 => Err(TlsError::HungUp.into()),
            count => {
                self.silent = false;
                self.incoming.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }

    fn wait(&self) -> Wait<'a> {
        let left = self.until.saturating_duration_since(Instant::now());
        Wait::new(self.socket, self.stop, left)
    }

    fn in_time(&self, result: io::Result<usize>) -> io::Result<usize> {
        result.map_err(|error| {
            if error.kind() == ErrorKind::TimedOut && Instant::now() >= self.until {
                let text = format!("the TLS handshake was not done in {:?}", self.limit);
                return io::Error::new(ErrorKind::TimedOut, text);
            }
            error
        })
    }
}

impl fmt::Debug for Client {
    /// Shows no secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Server {
    /// Shows no secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}
