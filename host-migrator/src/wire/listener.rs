// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Listens for connections of the other side.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Type};
use spec_sockets::{Access, SocketFile, inherited};

use super::address::Address;
use super::connection::Connection;
use super::dial;
use super::error::TransportError;
use super::tls::TlsConfig;

/// How many connections may wait to be accepted.
const QUEUE: i32 = 128;
/// How many ports are tried to find one that is free at several addresses.
const PORTS_TRIED: u32 = 16;

/// A listening socket. Dropping it removes the file of a unix socket.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
    /// The file of a unix socket.
    file: Option<SocketFile>,
    /// For connections that are encrypted.
    tls: Option<TlsConfig>,
    /// How long a peer may be silent; `None` is the default of connections.
    patience: Option<Duration>,
}

#[derive(Debug)]
enum Socket {
    /// Listening sockets: of TCP one for each address of the name.
    Listening(Vec<socket2::Socket>),
    /// Connections that this process was started with, and that were not accepted yet.
    Connected(Mutex<VecDeque<Connection>>),
}

impl Listener {
    /// Listens at `address`. Only the owner may connect to a unix socket. See [`Listener::bind_for`].
    ///
    /// # Errors
    /// [`TransportError`] with the reason.
    pub fn bind(address: &Address) -> Result<Self, TransportError> {
        Self::bind_for(address, Access::OWNER)
    }

    /// Listens at `address`, with one port at all addresses that a name has on this machine, IPv4 and IPv6. `[::]`
    /// stands for all addresses of both families, `0.0.0.0` for those of IPv4. `access` says who may connect to a unix
    /// socket. A socket file that a dead program left behind is replaced. A socket in use, or a file of another kind,
    /// is an error.
    ///
    /// Of `fd:` addresses the process may have been started with one listening socket, or with connections. These are accepted
    /// one after the other.
    ///
    /// # Errors
    /// [`TransportError`] with the reason.
    pub fn bind_for(address: &Address, access: Access) -> Result<Self, TransportError> {
        let bound = match address {
            Address::Tcp { host, port } => listen_tcp(host, *port).map(|(sockets, port)| {
                let host = host.clone();
                let address = Address::Tcp { host, port };
                (Socket::Listening(sockets), address, None)
            }),
            Address::Unix(path) => spec_sockets::listen(path, access)
                .map(|(socket, file)| {
                    let socket = Socket::Listening(vec![OwnedFd::from(socket).into()]);
                    (socket, address.clone(), Some(file))
                })
                .map_err(io::Error::from),
            Address::Vsock { cid, port } => listen_at(Domain::VSOCK, &SockAddr::vsock(*cid, *port))
                .map(|socket| (Socket::Listening(vec![socket]), address.clone(), None)),
            Address::Fd(numbers) => given(numbers).map(|socket| (socket, address.clone(), None)),
        };
        let (socket, address, file) = bound.map_err(|source| TransportError {
            action: "listen on",
            address: address.clone(),
            source,
        })?;
        Ok(Self {
            socket,
            address,
            file,
            tls: None,
            patience: None,
        })
    }

    /// Has all peers begin with TLS, and show a certificate that `tls` accepts. A handshake is made when a connection is
    /// used, not while it is accepted: nobody waits for a stranger's.
    #[must_use]
    pub fn with_tls(mut self, tls: &TlsConfig) -> Self {
        self.tls = Some(tls.clone());
        self
    }

    /// Sets how long a peer may be silent while this side waits for it.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// The address at which it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether its connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Waits for one connection; without a `timeout` for ever.
    ///
    /// # Errors
    /// [`TransportError`], with [`io::ErrorKind::TimedOut`] after `timeout`.
    pub fn accept(&self, timeout: Option<Duration>) -> Result<Connection, TransportError> {
        let connection = self.accept_one(timeout).map_err(|source| TransportError {
            action: "accept a connection on",
            address: self.address.clone(),
            source,
        })?;
        let connection = match self.patience {
            Some(patience) => connection.with_patience(patience),
            None => connection,
        };
        Ok(match &self.tls {
            Some(tls) => connection.awaiting_tls(tls),
            None => connection,
        })
    }

    /// Removes the file of a unix socket, for a process that is about to end. Another thread may be waiting for a
    /// connection.
    pub fn remove_file(&self) {
        if let Some(file) = &self.file
            && let Err(error) = file.remove()
        {
            log::warn!("{} stays: {error}", file.path().display());
        }
    }

    /// Whether no connection can come any more: all of those that the process was started with have been accepted.
    pub(crate) fn is_exhausted(&self) -> bool {
        match &self.socket {
            Socket::Listening(_) => false,
            Socket::Connected(waiting) => waiting.lock().is_empty(),
        }
    }

    fn accept_one(&self, timeout: Option<Duration>) -> io::Result<Connection> {
        match &self.socket {
            Socket::Listening(sockets) => accept_one(sockets, timeout),
            Socket::Connected(waiting) => waiting.lock().pop_front().ok_or_else(|| {
                // As long as a listener would take to see that nobody comes.
                timeout.into_iter().for_each(thread::sleep);
                io::ErrorKind::TimedOut.into()
            }),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Before the socket is closed: afterwards another program may have replaced the file.
        self.remove_file();
    }
}

/// Accepts a connection of one of `sockets`.
fn accept_one(sockets: &[socket2::Socket], timeout: Option<Duration>) -> io::Result<Connection> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled: Vec<_> = (sockets.iter())
            .map(|socket| PollFd::new(socket, PollFlags::IN))
            .collect();
        match poll(&mut polled, left.as_ref()) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for (socket, polled) in sockets.iter().zip(&polled) {
            if polled.revents().is_empty() {
                continue;
            }
            match socket.accept() {
                // The connection has gone again. Others may come.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                    ) => {}
                accepted => return Connection::try_from(OwnedFd::from(accepted?.0)),
            }
        }
    }
}

/// The sockets that this process was started with.
fn given(numbers: &[u32]) -> io::Result<Socket> {
    let sockets = inherited::stream_sockets(numbers)?;
    let listening = (sockets.iter())
        .map(|socket| Ok(rustix::net::sockopt::socket_acceptconn(socket)?))
        .collect::<io::Result<Vec<_>>>()?;
    if listening == [true] {
        let sockets: Vec<_> = sockets.into_iter().map(socket2::Socket::from).collect();
        sockets[0].set_nonblocking(true)?;
        return Ok(Socket::Listening(sockets));
    }
    if listening.contains(&true) {
        let text = "a listening socket must be the only one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let connections = sockets.into_iter().map(Connection::try_from);
    Ok(Socket::Connected(Mutex::new(
        connections.collect::<io::Result<_>>()?,
    )))
}

/// Listens at `port` of all addresses of `host`; 0 lets the system choose a port. Returns the port.
fn listen_tcp(host: &str, port: u16) -> io::Result<(Vec<socket2::Socket>, u16)> {
    let addresses = dial::resolve(host, port)?;
    let mut tries = if port == 0 { PORTS_TRIED } else { 1 };
    loop {
        tries -= 1;
        match listen_at_all(&addresses, port) {
            // The port is free at the first address and in use at another.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            result => return result,
        }
    }
}

fn listen_at_all(
    addresses: &[SocketAddr],
    mut port: u16,
) -> io::Result<(Vec<socket2::Socket>, u16)> {
    let mut sockets = Vec::new();
    let mut missing = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        let address = SocketAddr::new(address.ip(), port);
        match listen_at(Domain::for_address(address), &address.into()) {
            Ok(socket) => {
                let bound = socket.local_addr()?.as_socket();
                port = bound.map_or(port, |bound| bound.port());
                sockets.push(socket);
            }
            // A name may stand for both families on a machine where one of them is switched off.
            Err(error) if is_not_here(&error) => {
                log::info!("not listening at {}: {error}", address.ip());
                missing = error;
            }
            Err(error) => return Err(error),
        }
    }
    if sockets.is_empty() {
        return Err(missing);
    }
    Ok((sockets, port))
}

fn is_not_here(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

fn listen_at(domain: Domain, address: &SockAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(domain, Type::STREAM, None)?;
    if let Some(address) = address.as_socket() {
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // Does not depend on the system's default: `[::]` is both families, any other address only its own.
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
    }
    // Non-blocking, because a connection may go between poll and accept.
    socket.set_nonblocking(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// The time limit for what must happen.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let address = Address::Unix(path.clone());
        std::fs::write(&path, "a file").unwrap();
        let error = Listener::bind(&address).unwrap_err();
        assert!(error.to_string().contains("plain file"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        std::fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).is_err());
        drop(listener);
        assert!(!path.exists());
    }

    /// Whether a connection to `address` at the listener's port is accepted.
    fn is_reached(listener: &Listener, address: &str) -> bool {
        let Address::Tcp { port, .. } = listener.address() else {
            unreachable!()
        };
        let host = address.to_owned();
        let connected = Connection::connect(&Address::Tcp { host, port: *port }, PATIENCE);
        connected.is_ok() && listener.accept(Some(PATIENCE)).is_ok()
    }

    #[test]
    fn a_name_is_listened_on_in_both_families() {
        if TcpListener::bind("[::1]:0").is_err() {
            spec_testing::skipped("this machine has no IPv6");
            return;
        }
        let families = dial::resolve("localhost", 0).unwrap();
        if !families.iter().any(SocketAddr::is_ipv6) {
            spec_testing::skipped("localhost does not resolve to ::1 on this machine");
            return;
        }
        let listener = Listener::bind(&"tcp:localhost:0".parse().unwrap()).unwrap();
        assert!(is_reached(&listener, "::1"));
        assert!(is_reached(&listener, "127.0.0.1"));
    }

    #[test]
    fn the_unspecified_ipv6_address_stands_for_both_families() {
        let Ok(listener) = Listener::bind(&"tcp:[::]:0".parse().unwrap()) else {
            spec_testing::skipped("this machine has no IPv6");
            return;
        };
        assert!(is_reached(&listener, "127.0.0.1"));
        assert!(is_reached(&listener, "::1"));
    }

    #[test]
    fn one_port_is_used_at_every_address_of_this_machine() {
        // The second address is not on this machine. The third must get the first one's port.
        let addresses = ["127.0.0.1:0", "192.0.2.1:0", "127.0.0.2:0"];
        let addresses = addresses.map(|address| address.parse().unwrap());
        let (sockets, port) = listen_at_all(&addresses, 0).unwrap();
        let here: Vec<_> = (sockets.iter())
            .map(|socket| socket.local_addr().unwrap().as_socket().unwrap())
            .collect();
        let expected = [([127, 0, 0, 1], port), ([127, 0, 0, 2], port)];
        assert_eq!(here, expected.map(SocketAddr::from));
        assert!(listen_at_all(&addresses[1..2], 0).is_err());
    }

    #[test]
    fn accept_without_a_connection_times_out() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let error = listener.accept(Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
    }
}
