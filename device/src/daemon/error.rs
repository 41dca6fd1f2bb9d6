// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The errors of devices and of the process, and the events that a device's threads send to the main thread.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::service_manager::ActivationError;
use crate::agent::key::KeyFileError;
use crate::args::SameName;
use crate::sandbox::SandboxError;
use crate::vhost_user::front_end::FrontEndError;

/// Why a device, or all, could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No front end can connect any more.
    #[error("cannot accept a front end: {0}")]
    Accept(#[source] io::Error),
    /// Any process of the guest could pose as its agent.
    #[error(
        "'{0}' has a socket for its guest's agent, but no key by which to recognise the agent: every process of a guest \
         can connect over vsock. Give --agent-key FILE; or --agent-transport console, if the socket is connected to a \
         virtio-console port or a serial line, which only the guest's root can open"
    )]
    AgentUnknown(String),
    /// The agent's key cannot be read.
    #[error("--agent-key {}: {source}", path.display())]
    AgentKey {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        source: KeyFileError,
    },
    /// A socket of the service manager is wrong.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The command line is invalid.
    #[error(transparent)]
    CommandLine(#[from] SameName),
    /// There are no file descriptors or threads left.
    #[error("cannot start the device: {0}")]
    Device(#[source] io::Error),
    /// `--fd` is not an open file descriptor.
    #[error("cannot use file descriptor {fd}: {source}")]
    Inherited {
        /// Its number.
        fd: RawFd,
        /// Why not.
        source: io::Error,
    },
    /// A socket cannot be listened on.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nobody can connect to the device with this name.
    #[error(
        "no front end can connect to '{0}': give --socket-path or --fd, or have the service manager pass a socket"
    )]
    NoFrontEnd(String),
    /// The device has a bug.
    #[error("the device has ended unexpectedly: this is a bug")]
    Panicked,
    /// What was asked for cannot be printed.
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
    /// The process that removes the sockets at the end cannot be started.
    #[error("cannot start the process that removes the sockets at the end: {0}")]
    Remover(#[source] io::Error),
    /// The process cannot be restricted.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A front end's connection did not end by itself.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// Devices did not end in time.
    #[error(
        "'{0}' did not end: it is blocked in memory that its front end has lent, so its guest may not have been told that \
         hinting is over. The process ends all the same"
    )]
    Stuck(String),
    /// The trace cannot be opened.
    #[error("cannot record in {}: {source}", path.display())]
    Trace {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Signals cannot be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
}

/// Events for the main thread.
#[derive(Debug)]
pub enum DaemonEvent {
    /// The process must end, for the given reason.
    End(&'static str),
    /// A front end has come or gone.
    Changed,
    /// The device with this name has ended.
    Ended(Arc<str>, Result<(), DaemonError>),
}
