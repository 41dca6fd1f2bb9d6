// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One front end's connection, from its first message to its end.
//!
//! The vhost-user crate's daemon does what messages say, in threads of its own, behind the relay. It takes
//! nothing else than a listener to get its messages from, so it gets one with a single connection: ours.

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

/// How often strangers may come first on the inner connection.
const ATTEMPTS: usize = 16;

/// Why a front end's connection ended, if it did not hang up.
#[derive(Debug, thiserror::Error)]
pub enum FrontEndError {
    /// The connection between relay and vhost-user crate cannot be made.
    #[error("cannot connect the relay: {0}")]
    Relay(#[source] io::Error),
    /// The vhost-user crate's worker thread cannot be reached.
    #[error("the queues' worker thread does not do its work: {0}")]
    Worker(#[source] io::Error),
    /// A front end broke the vhost-user protocol.
    #[error("the front end's connection ends: {0}")]
    Connection(#[source] io::Error),
    /// The vhost-user crate gave up.
    #[error("vhost-user: {0}")]
    VhostUser(vhost_user_backend::Error),
}

/// Serves one front end until it hangs up, or `front` is shut down. `channel` is what the device of `backend`
/// tells it of changes through.
///
/// # Errors
/// [`FrontEndError`] if it does not end by itself.
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

/// Starts `daemon` behind the relay and waits for the end of both.
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
    // Both sides see the end, whichever was its cause. A side that has gone needs no telling.
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

/// A front end that is killed leaves its messages unread or half written.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    )
}

/// A listener with one connection waiting, ours. It has a name that no file has: the sandbox reaches no files.
/// Others could connect to it; but there is room for one, so if we come in without having to wait, nobody else
/// has, and nobody will before the daemon has taken ours and closed the listener.
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
            // A stranger is waiting there.
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
    fn the_one_connection_that_the_daemon_takes_is_ours() {
        let (listener, mut ours) = inner_connection().unwrap();
        let mut theirs = listener.accept().unwrap().unwrap();
        ours.write_all(b"ours").unwrap();
        let mut read = [0; 4];
        theirs.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"ours");
    }

    #[test]
    fn nobody_else_gets_in_beside_us() {
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
