// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One front end's connection, from its first message to its end.
//!
//! The vhost-user crate's daemon does what messages say, in threads of its own, behind the relay. It reads messages
//! only from a connection that it has accepted itself, so it gets a listener with a single waiting connection: ours.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::rand::{GetRandomFlags, getrandom};
use vhost::vhost_user::Error::{Disconnected, PartialMessage};
use vhost::vhost_user::Listener;
use vhost_user_backend::Error::HandleRequest;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::GuestMemoryMmap;

use crate::guest::config_channel::ConfigChannel;
use crate::memory::guest_memory::Memory;
use crate::vhost_user::backend::Backend;
use crate::vhost_user::relay::relay;

/// How often a listener is made anew because a stranger connected to it first.
const ATTEMPTS: usize = 16;

/// Why a front end's connection ended without a hang-up.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// The relay cannot connect to the vhost-user crate.
    #[error("cannot connect the relay: {0}")]
    Relay(#[source] io::Error),
    /// The vhost-user crate's worker thread does not answer.
    #[error("the queues' worker thread does not answer: {0}")]
    Worker(#[source] io::Error),
    /// The front end broke the vhost-user protocol.
    #[error("the front end's connection was closed: {0}")]
    Connection(#[source] io::Error),
    /// The vhost-user crate failed.
    #[error("vhost-user: {0}")]
    VhostUser(vhost_user_backend::Error),
}

/// Serves one front end until it hangs up, or `front` is shut down. Through `channel` the device of `backend` tells it
/// that the configuration has changed.
///
/// # Errors
/// [`FrontEndError`] if the connection ends otherwise.
pub fn serve(
    front: &UnixStream,
    backend: &Arc<Backend>,
    channel: &ConfigChannel,
) -> Result<(), FrontEndError> {
    let memory = Memory::new(GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new("vhost-user".into(), Arc::clone(backend), memory)
        .map_err(FrontEndError::VhostUser)?;
    let mut daemon = backend.attach(daemon).map_err(FrontEndError::Worker)?;
    let result = pass_messages(front, &mut daemon, backend, channel);
    backend.detach(daemon);
    result
}

/// Starts `daemon` behind the relay and waits until both have ended.
fn pass_messages(
    front: &UnixStream,
    daemon: &mut VhostUserDaemon<Arc<Backend>>,
    backend: &Backend,
    channel: &ConfigChannel,
) -> Result<(), FrontEndError> {
    let (mut listener, back) = inner_connection().map_err(FrontEndError::Relay)?;
    daemon
        .start(&mut listener)
        .map_err(FrontEndError::VhostUser)?;
    let relayed = relay(front, &back, backend, channel);
    // Shuts down both sides, whichever ended first. A side that has gone already ignores it.
    let _ = front.shutdown(Shutdown::Both);
    let _ = back.shutdown(Shutdown::Both);
    match (relayed, daemon.wait()) {
        (_, Err(error)) if !matches!(error, HandleRequest(Disconnected | PartialMessage)) => {
            Err(FrontEndError::VhostUser(error))
        }
        (Err(error), _) if !is_hang_up(&error) => Err(FrontEndError::Connection(error)),
        _ => Ok(()),
    }
}

/// Whether the front end has hung up. One that is killed leaves its messages unread or half written.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    )
}

/// A listener with one waiting connection, ours. Its name is abstract, as the sandbox lets nobody reach files. Others
/// could connect to it, but its queue holds one connection. If ours enters without waiting, nobody else is in the
/// queue, and nobody can enter it before the daemon has accepted ours and closed the listener.
fn inner_connection() -> io::Result<(Listener, UnixStream)> {
    let new_socket = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
    };
    for _ in 0..ATTEMPTS {
        let mut number = [0; 16];
        getrandom(&mut number, GetRandomFlags::empty())?;
        let name = format!("vhost-device-balloon-{:032x}", u128::from_ne_bytes(number));
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
        let (listener, connection) = (new_socket()?, new_socket()?);
        bind(&listener, &address)?;
        listen(&listener, 0)?;
        match connect(&connection, &address) {
            Ok(()) => {
                let connection = UnixStream::from(connection);
                connection.set_nonblocking(false)?;
                return Ok((Listener::from(UnixListener::from(listener)), connection));
            }
            // A stranger is in the queue.
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::linux::net::SocketAddrExt;

    #[test]
    fn the_daemon_accepts_our_connection() {
        let (listener, mut ours) = inner_connection().unwrap();
        let mut theirs = listener.accept().unwrap().unwrap();
        ours.write_all(b"ours").unwrap();
        let mut read = [0; 4];
        theirs.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"ours");
    }

    #[test]
    fn a_stranger_cannot_connect_beside_us() {
        let (_listener, ours) = inner_connection().unwrap();
        let address = ours.peer_addr().unwrap();
        assert!(address.as_abstract_name().is_some());
        let name = address.as_abstract_name().unwrap();
        let flags = SocketFlags::NONBLOCK;
        let stranger = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let address = SocketAddrUnix::new_abstract_name(name).unwrap();
        assert_eq!(connect(&stranger, &address), Err(Errno::AGAIN));
    }
}
