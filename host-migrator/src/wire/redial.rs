// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Further connections to the peer of one.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;

use super::connection::Connection;
use super::dial;
use super::stop::StopFlag;
use super::tls;

/// Connects to the peer of a connection again.
#[derive(Debug)]
pub(crate) struct Redial {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
    patience: Duration,
    /// The unix socket that was connected to, as this process names it.
    path: Option<PathBuf>,
    /// Connections that are there already.
    given: Mutex<Vec<Connection>>,
    /// Resumes the session of a connection that is encrypted.
    tls: Option<tls::Client>,
}

impl Redial {
    /// Connects to the peer of `connection`. The new connections share its stop and patience.
    pub(crate) fn of(connection: &mut Connection) -> Self {
        Self {
            socket: Arc::clone(&connection.socket),
            stop: connection.stop.clone(),
            patience: connection.patience,
            path: connection.path.take(),
            tls: connection.tls_client(),
            given: std::mem::take(&mut connection.more).into(),
        }
    }

    /// Another connection: one that was given, or a new one. It is encrypted if the first is.
    ///
    /// # Errors
    /// If the peer cannot be connected to within `timeout`, or has no address; if the handshake fails, or is not done within the
    /// patience.
    pub(crate) fn another(&self, timeout: Duration) -> io::Result<Connection> {
        let given = self.given.lock().pop();
        let connection = match given {
            Some(given) => given,
            None => self.dial(timeout)?,
        };
        let connection = self.adopt(connection);
        match &self.tls {
            Some(client) if !connection.is_encrypted() => connection.resume_tls(client.clone()),
            _ => Ok(connection),
        }
    }

    /// All connections that were given.
    pub(crate) fn take_given(&mut self) -> Vec<Connection> {
        let given = std::mem::take(self.given.get_mut());
        given.into_iter().map(|given| self.adopt(given)).collect()
    }

    /// Makes `connection` share the stop and the patience.
    pub(crate) fn adopt(&self, connection: Connection) -> Connection {
        let connection = connection.with_stop(self.stop.clone());
        connection.with_patience(self.patience)
    }

    fn dial(&self, timeout: Duration) -> io::Result<Connection> {
        let peer = SockRef::from(&self.socket).peer_addr()?;
        if let Some(address) = peer.as_socket() {
            return TcpStream::connect_timeout(&address, timeout).and_then(Connection::try_from);
        }
        if let Some((cid, port)) = peer.as_vsock_address() {
            return dial::connect_vsock(cid, port, timeout).and_then(Connection::try_from);
        }
        match self.path.as_deref().or(peer.as_pathname()) {
            Some(path) => dial::connect_unix(path, timeout).and_then(Connection::try_from),
            None => Err(io::Error::new(
                ErrorKind::AddrNotAvailable,
                "the other side's socket has no address to connect to again, so every channel needs a socket of its own",
            )),
        }
    }
}
