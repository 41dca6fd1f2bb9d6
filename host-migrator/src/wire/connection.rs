// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection whose every wait ends: with data, a closed socket, a stop by another thread, a peer that has been
//! silent for too long, or a deadline.
//!
//! A silent peer neither takes nor gives a byte. The kernel chooses the sizes of the socket's buffers: it never tunes a
//! size that a program has set, and a long link would then carry only a part of what it can.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use socket2::{SockRef, TcpKeepalive};
use spec_sockets::inherited;

use super::address::Address;
use super::dial;
use super::error::TransportError;
use super::reader::Reader;
use super::stop::StopFlag;
use super::tls::{self, TlsConfig, TlsError};
use super::wait::TICK;
use super::writer::Writer;

/// After so many patiences the kernel gives up a peer that acknowledges nothing. More than one, because the kernel also
/// counts the time in which a slow peer acknowledges everything but has no room. This side does not count that time.
const KERNEL_PATIENCES: u32 = 4;
/// How long a peer may be silent, unless the operator says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection between source and destination.
#[derive(Debug)]
pub struct Connection {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) stop: StopFlag,
    pub(super) patience: Duration,
    /// The unix socket that was connected to, as this process names it.
    pub(super) path: Option<PathBuf>,
    /// Connections to the same peer that are there already.
    pub(super) more: Vec<Connection>,
    security: Security,
}

/// Whether a connection is encrypted.
#[derive(Debug)]
enum Security {
    Plain,
    /// The peer is to begin a handshake.
    Awaited(tls::Server),
    /// The handshake is done. The end that began it makes more connections of the session.
    Encrypted(tls::Directions, Option<tls::Client>),
}

impl Connection {
    /// Connects to `address`. All addresses of a name are tried in parallel.
    ///
    /// # Errors
    /// [`TransportError`] if none answers within `timeout`, the name's resolution included.
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, TransportError> {
        Self::dial(address, timeout).map_err(|source| failed_to_connect(address, source))
    }

    /// As [`Connection::connect`], with TLS. The peer must show a certificate for the address's host, or for the name that
    /// `tls` expects ([`TlsConfig::expecting`]), and accept this side's. Channels are encrypted, too.
    ///
    /// # Errors
    /// [`TransportError`], also if the handshake fails or is not done within `timeout`. Its source is a [`TlsError`] where TLS is the
    /// reason.
    pub fn connect_tls(
        address: &Address,
        timeout: Duration,
        tls: &TlsConfig,
    ) -> Result<Self, TransportError> {
        let end = Instant::now() + timeout;
        Self::dial(address, timeout)
            .and_then(|connection| {
                let left = end.saturating_duration_since(Instant::now());
                connection.begin_tls(tls.client(address.host()), left)
            })
            .map_err(|source| failed_to_connect(address, source))
    }

    /// Makes TLS of a connected socket, as the end that begins. The peer's certificate must be for the name that `tls` expects
    /// ([`TlsConfig::expecting`]).
    ///
    /// # Errors
    /// If there is no such name, or the handshake fails or is not done within the patience.
    pub fn with_tls(self, tls: &TlsConfig) -> io::Result<Self> {
        let limit = self.patience;
        self.begin_tls(tls.client(None), limit)
    }

    /// Has the peer begin TLS, before anything else. Needed where the VMM has accepted the connection itself;
    /// [`Listener::with_tls`](super::Listener::with_tls) does it otherwise.
    #[must_use]
    pub fn awaiting_tls(mut self, tls: &TlsConfig) -> Self {
        self.security = Security::Awaited(tls.server());
        let more = self.more.into_iter();
        self.more = more.map(|more| more.awaiting_tls(tls)).collect();
        self
    }

    /// Whether everything on it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        !matches!(self.security, Security::Plain)
    }

    fn dial(address: &Address, timeout: Duration) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                dial::connect_tcp(host, *port, timeout).and_then(Self::try_from)
            }
            Address::Unix(path) => dial::connect_unix(path, timeout)
                .and_then(Self::try_from)
                .map(|connected| Self {
                    path: Some(path.clone()),
                    ..connected
                }),
            Address::Vsock { cid, port } => {
                dial::connect_vsock(*cid, *port, timeout).and_then(Self::try_from)
            }
            Address::Fd(numbers) => inherited::stream_sockets(numbers).and_then(Self::of_sockets),
        }
    }

    fn begin_tls(mut self, client: Option<tls::Client>, limit: Duration) -> io::Result<Self> {
        let client = client.ok_or(TlsError::NoName)?;
        let directions = client.shake(&self.socket, &self.stop, limit)?;
        self.security = Security::Encrypted(directions, Some(client));
        Ok(self)
    }

    /// Makes TLS of it, as the end that begins; with a ticket of the session of `client`, if there is one.
    pub(super) fn resume_tls(self, client: tls::Client) -> io::Result<Self> {
        let limit = self.patience;
        self.begin_tls(Some(client), limit)
    }

    /// Waits for the handshake that the peer is to begin, if there is one to be awaited.
    ///
    /// # Errors
    /// If it fails, or is not done within the patience, or the wait ends.
    pub(crate) fn secure(&mut self) -> io::Result<()> {
        if let Security::Awaited(server) = &self.security {
            let directions = server.shake(&self.socket, &self.stop, self.patience)?;
            self.security = Security::Encrypted(directions, None);
        }
        Ok(())
    }

    /// What makes more encrypted connections to the peer.
    pub(super) fn tls_client(&self) -> Option<tls::Client> {
        match &self.security {
            Security::Encrypted(_, client) => client.clone(),
            Security::Plain | Security::Awaited(_) => None,
        }
    }

    /// Gives this connection `more` to the same peer, for a migration over several channels. Needed only where the peer cannot
    /// be connected to again, as with sockets that another process has made.
    #[must_use]
    pub fn with_more(mut self, more: impl IntoIterator<Item = Self>) -> Self {
        self.more.extend(more);
        self
    }

    /// A handle that ends the connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer {
            socket: Arc::clone(&self.socket),
            stop: self.stop.clone(),
        }
    }

    /// Sets how long the peer may be silent while this side waits for it.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        set_kernel_patience(&self.socket, patience);
        self
    }

    /// From now on `stop` ends the waits of this connection, as those of others.
    #[must_use]
    pub(crate) fn with_stop(self, stop: StopFlag) -> Self {
        Self { stop, ..self }
    }

    /// Another thread can raise this flag to end all waits of this connection.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }

    /// The two directions, after a handshake that is awaited.
    ///
    /// # Errors
    /// As [`Connection::secure`] has.
    pub(crate) fn split(mut self) -> io::Result<(Reader, Writer)> {
        self.secure()?;
        let (inbound, outbound) = match self.security {
            Security::Encrypted(directions, _) => (Some(directions.0), Some(directions.1)),
            Security::Plain | Security::Awaited(_) => (None, None),
        };
        let socket = Arc::clone(&self.socket);
        let reader = Reader::new(socket, self.stop.clone(), self.patience, inbound);
        let writer = Writer::new(self.socket, self.stop, self.patience, outbound);
        Ok((reader, writer))
    }

    /// Of connected `sockets`, the first; the others are given to it for channels, as by [`Connection::with_more`].
    ///
    /// # Errors
    /// If there is none, or one of them is not connected.
    pub fn of_sockets(sockets: impl IntoIterator<Item = OwnedFd>) -> io::Result<Self> {
        let connections = sockets.into_iter().map(Self::try_from);
        let mut connections = connections.collect::<io::Result<Vec<_>>>()?.into_iter();
        let first = connections.next().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(first.with_more(connections))
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        options.set_read_timeout(Some(TICK))?;
        options.set_write_timeout(Some(TICK))?;
        set_kernel_patience(&socket, PATIENCE);
        Ok(Self {
            socket: Arc::new(socket),
            stop: StopFlag::default(),
            patience: PATIENCE,
            path: None,
            more: Vec::new(),
            security: Security::Plain,
        })
    }
}

fn failed_to_connect(address: &Address, source: io::Error) -> TransportError {
    TransportError {
        action: "connect to",
        address: address.clone(),
        source,
    }
}

impl TryFrom<TcpStream> for Connection {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // Detects within 25 seconds that the peer's machine has gone, even if nothing has to be sent.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Self::new(stream.into())
    }
}

impl TryFrom<UnixStream> for Connection {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        Self::new(stream.into())
    }
}

/// A stream socket of any kind that is connected.
impl TryFrom<OwnedFd> for Connection {
    type Error = io::Error;

    fn try_from(socket: OwnedFd) -> io::Result<Self> {
        // Of a socket that is not connected this is an error.
        SockRef::from(&socket).peer_addr()?;
        match socket_domain(&socket)? {
            AddressFamily::INET | AddressFamily::INET6 => TcpStream::from(socket).try_into(),
            _ => Self::new(socket),
        }
    }
}

/// Ends a [`Connection`] from another thread.
#[derive(Clone, Debug)]
pub struct Closer {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
}

impl Closer {
    /// Closes the connection both ways; the peer sees its end.
    pub fn close(&self) {
        self.stop.raise();
        self.shut();
    }

    /// As [`Closer::close`], for one of several connections that are stopped together: the others go on.
    pub(crate) fn shut(&self) {
        // Shutting down a socket that is already closed fails, and does not matter.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// Has the kernel give up a TCP peer that acknowledges nothing. Other kinds of sockets do not support this.
fn set_kernel_patience(socket: &OwnedFd, patience: Duration) {
    let patience = patience.saturating_mul(KERNEL_PATIENCES);
    // The kernel takes milliseconds as a signed 32-bit number. A longer time becomes no limit.
    let limit = (patience.as_millis() <= i32::MAX as u128).then_some(patience);
    let _ = SockRef::from(socket).set_tcp_user_timeout(limit);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, IoSlice};
    use std::net::TcpListener;

    /// A TCP connection and the peer's bare socket.
    fn tcp() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        (near.try_into().unwrap(), far)
    }

    #[test]
    fn the_kernel_chooses_the_sizes_of_the_buffers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bare = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, _far) = tcp();
        let (ours, bare) = (SockRef::from(&connection.socket), SockRef::from(&bare));
        let sizes = |socket: &SockRef<'_>| {
            let send = socket.send_buffer_size().unwrap();
            (send, socket.recv_buffer_size().unwrap())
        };
        assert_eq!(sizes(&ours), sizes(&bare));
    }

    #[test]
    fn the_kernel_detects_a_tcp_peer_that_has_gone() {
        let (connection, _far) = tcp();
        let connection = connection.with_patience(Duration::from_secs(20));
        let socket = SockRef::from(&connection.socket);
        assert!(socket.keepalive().unwrap());
        let given_up = socket.tcp_user_timeout().unwrap();
        assert_eq!(given_up, Some(Duration::from_secs(80)));
    }

    #[test]
    fn a_peer_that_takes_nothing_but_sends_is_not_silent() {
        let (connection, far) = tcp();
        let (_, mut writer) = connection
            .with_patience(Duration::from_millis(500))
            .split()
            .unwrap();
        let speaker = std::thread::spawn(move || {
            use std::io::Write;
            for _ in 0..30 {
                (&far).write_all(b"!").unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            (Instant::now(), far)
        });
        let bytes = vec![0; 64 << 20];
        let error = writer.write_all(&mut [IoSlice::new(&bytes)]).unwrap_err();
        let gave_up = Instant::now();
        assert_eq!(error.source.kind(), ErrorKind::TimedOut);
        // Keeps the far end open until here.
        let (fell_silent, _far) = speaker.join().unwrap();
        assert!(gave_up > fell_silent);
    }
}
