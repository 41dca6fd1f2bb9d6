// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon: front ends come and go, the device stays.

use std::io;
use std::net::Shutdown;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::{ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vhost::vhost_user::Error::{Disconnected, PartialMessage};
use vhost::vhost_user::Listener;
use vhost_user_backend::Error::HandleRequest;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::GuestMemoryMmap;

use crate::args::{Config, FrontEnd, NoFrontEnd};
use crate::backend::Backend;
use crate::balloon::Balloon;
use crate::config_channel::ConfigChannel;
use crate::control::ControlServer;
use crate::relay::relay;
use crate::rings::Memory;
use crate::sockets::BoundSocket;

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The command line names no front end.
    #[error(transparent)]
    NoFrontEnd(#[from] NoFrontEnd),
    /// A socket cannot be listened on.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No front end can connect any more.
    #[error("cannot accept a front end: {0}")]
    Accept(#[source] io::Error),
    /// `--fd` is no open file descriptor.
    #[error("cannot use file descriptor {fd}: {source}")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// Why not.
        source: io::Error,
    },
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

/// Runs the device until its only front end hangs up, or, if it may have several, for ever.
///
/// # Errors
/// [`DaemonError`]; a front end that misbehaves ends the daemon only if it was to be the only one.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let channel = Arc::new(ConfigChannel::default());
    let balloon = Balloon::new(config.queue_numbering, Arc::clone(&channel));
    let backend = Arc::new(Backend::new(balloon).map_err(DaemonError::Worker)?);
    let _control = config
        .control_socket
        .map(|path| {
            ControlServer::start(&path, Arc::clone(&backend))
                .map_err(|source| DaemonError::Listen { path, source })
        })
        .transpose()?;
    match config.front_end {
        FrontEnd::Inherited(fd) => {
            let front = inherited(fd).map_err(|source| DaemonError::Inherited { fd, source })?;
            serve(&UnixStream::from(front), &backend, &channel)
        }
        FrontEnd::Listen { path, once } => {
            let listener =
                BoundSocket::bind(&path).map_err(|source| DaemonError::Listen { path, source })?;
            loop {
                let (front, _) = listener.accept().map_err(DaemonError::Accept)?;
                let result = serve(&front, &backend, &channel);
                if once {
                    return result;
                }
                if let Err(error) = result {
                    log::warn!("{error}");
                }
            }
        }
    }
}

/// Serves one front end until it hangs up.
fn serve(
    front: &UnixStream,
    backend: &Arc<Backend>,
    channel: &ConfigChannel,
) -> Result<(), DaemonError> {
    log::info!("a front end has connected");
    let memory = Memory::new(GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new("vhost_user".into(), Arc::clone(backend), memory)
        .map_err(DaemonError::VhostUser)?;
    let mut daemon = backend.meet(daemon).map_err(DaemonError::Worker)?;
    let result = pass_messages(front, &mut daemon, channel);
    backend.part(daemon);
    log::info!("the front end has gone");
    result
}

/// Starts `daemon` behind the relay and waits for the end of both.
fn pass_messages(
    front: &UnixStream,
    daemon: &mut VhostUserDaemon<Arc<Backend>>,
    channel: &ConfigChannel,
) -> Result<(), DaemonError> {
    let (mut listener, back) = inner_connection().map_err(DaemonError::Relay)?;
    daemon
        .start(&mut listener)
        .map_err(DaemonError::VhostUser)?;
    let relayed = relay(front, &back, channel);
    // Both sides see the end, whichever was its cause. A side that has gone needs no telling.
    let _ = front.shutdown(Shutdown::Both);
    let _ = back.shutdown(Shutdown::Both);
    match (relayed, daemon.wait()) {
        (_, Err(error)) if !matches!(error, HandleRequest(Disconnected | PartialMessage)) => {
            Err(DaemonError::VhostUser(error))
        }
        (Err(error), _) if !is_hang_up(&error) => Err(DaemonError::Connection(error)),
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

/// A listener with one connection waiting, ours. The crate's daemon takes nothing else than a listener; its
/// socket lies in a folder that no other user can enter, and is gone before the daemon accepts.
fn inner_connection() -> io::Result<(Listener, UnixStream)> {
    let folder = tempfile::Builder::new()
        .prefix("vhost-device-balloon-")
        .tempdir()?;
    let path = folder.path().join("inner");
    let listener = UnixListener::bind(&path)?;
    let connection = UnixStream::connect(&path)?;
    folder.close()?;
    Ok((Listener::from(listener), connection))
}

/// A duplicate of the open file descriptor `fd`, by the kernel's own check that it is one.
fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(
        process,
        fd as ForeignRawFd,
        PidfdGetfdFlags::empty(),
    )?)
}
