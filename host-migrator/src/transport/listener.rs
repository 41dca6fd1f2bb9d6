// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting for the other side to connect.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Address, Channel, TransportError};

/// A socket that listens. A unix socket's file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens at `address`. A unix socket that a program left behind there is replaced; one that is in
    /// use, or a file of another kind, is not.
    ///
    /// # Errors
    /// [`TransportError`] with what hinders it.
    pub fn bind(address: &Address) -> Result<Self, TransportError> {
        let bound = match address {
            Address::Tcp { host, port } => {
                TcpListener::bind((host.as_str(), *port)).map(|socket| {
                    let port = socket.local_addr().map_or(*port, |local| local.port());
                    let host = host.clone();
                    (Socket::Tcp(socket), Address::Tcp { host, port })
                })
            }
            Address::Unix(path) => {
                listen_unix(path).map(|socket| (Socket::Unix(socket), address.clone()))
            }
        };
        let (socket, address) = bound.map_err(|source| TransportError {
            action: "listen on",
            address: address.clone(),
            source,
        })?;
        Ok(Self { socket, address })
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for one connection; without `timeout` for ever.
    ///
    /// # Errors
    /// [`TransportError`], with [`io::ErrorKind::TimedOut`] after `timeout`.
    pub fn accept(&self, timeout: Option<Duration>) -> Result<Channel, TransportError> {
        self.accept_one(timeout).map_err(|source| TransportError {
            action: "accept a connection on",
            address: self.address.clone(),
            source,
        })
    }

    /// Removes the file of a unix socket, also while another thread waits for a connection: for a process that
    /// ends.
    pub fn remove_file(&self) {
        if let Address::Unix(path) = &self.address {
            // It may be gone already, with the directory that it was in.
            let _ = std::fs::remove_file(path);
        }
    }

    fn accept_one(&self, timeout: Option<Duration>) -> io::Result<Channel> {
        let fd = match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            timeout.as_ref(),
        )? == 0
        {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match &self.socket {
            Socket::Tcp(socket) => Channel::try_from(socket.accept()?.0),
            Socket::Unix(socket) => Channel::try_from(socket.accept()?.0),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_behind(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

fn is_left_behind(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("socket"));
        let Address::Unix(path) = &address else {
            unreachable!()
        };
        drop(UnixListener::bind(path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&address).unwrap();
        assert!(Listener::bind(&address).is_err());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn nobody_who_connects_is_a_timeout() {
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let error = listener.accept(Some(Duration::from_millis(1))).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::TimedOut);
    }
}
