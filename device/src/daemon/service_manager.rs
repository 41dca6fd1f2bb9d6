// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The service manager (systemd): takes over the sockets that it listens on, and reports the service's state to it.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

/// The name of a front end's socket.
pub const VHOST_USER: &str = "vhost-user";
/// The name of a control socket.
pub const CONTROL: &str = "control";
/// The name of the socket of a guest's agent.
pub const AGENT: &str = "agent";
/// The name of the metrics socket.
pub const METRICS: &str = "metrics";

/// A socket of the service manager is wrong or superfluous.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// Not a socket of the right kind.
    #[error("the service manager's socket '{name}' cannot be used: {source}")]
    Socket {
        /// Its name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// No device is told to use it.
    #[error("the command line does not use the service manager's socket '{0}'")]
    Surplus(String),
}

/// The sockets of `LISTEN_FDS`, by name.
#[derive(Debug, Default)]
pub struct Activation {
    sockets: Vec<(String, UnixListener)>,
}

impl Activation {
    /// The sockets named by the environment, whose variables are then removed. A single socket without a known
    /// name is the front end's.
    ///
    /// # Errors
    /// [`ActivationError::Socket`] for anything that is not a listening unix socket.
    pub fn from_env() -> Result<Self, ActivationError> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut given = ListenFd::from_env();
        let mut names = names.split(':').map(String::from).chain(
            // As many as there are sockets.
            std::iter::repeat(String::from("unknown")),
        );
        let mut sockets = Vec::with_capacity(given.len());
        for index in 0..given.len() {
            let name = names.next().unwrap_or_default();
            let found = given
                .take_unix_listener(index)
                .and_then(|socket| socket.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .and_then(|socket| match socket_acceptconn(&socket)? {
                    true => Ok(socket),
                    false => Err(io::Error::other("it does not listen")),
                });
            match found {
                Ok(socket) => sockets.push((name, socket)),
                Err(source) => return Err(ActivationError::Socket { name, source }),
            }
        }
        if let [(name, _)] = &mut sockets[..]
            && ![VHOST_USER, CONTROL, AGENT, METRICS]
                .contains(&name.split('.').next().unwrap_or_default())
        {
            *name = VHOST_USER.into();
        }
        Ok(Self { sockets })
    }

    /// The socket called `name`, once.
    pub fn take(&mut self, name: &str) -> Option<UnixListener> {
        let found = self.sockets.iter().position(|(other, _)| other == name)?;
        Some(self.sockets.swap_remove(found).1)
    }

    /// The socket `name` of the device `device`. If there is only one device, the socket's name need not contain the device's.
    pub fn take_for_device(
        &mut self,
        name: &str,
        device: &str,
        only: bool,
    ) -> Option<UnixListener> {
        self.take(&format!("{name}.{device}"))
            .or_else(|| only.then(|| self.take(name)).flatten())
    }

    /// Checks that all sockets have been taken.
    ///
    /// # Errors
    /// [`ActivationError::Surplus`] if one is left: its clients would wait for ever.
    pub fn finish(self) -> Result<(), ActivationError> {
        match self.sockets.into_iter().next() {
            Some((name, _)) => Err(ActivationError::Surplus(name)),
            None => Ok(()),
        }
    }
}

/// Reports the service's state to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Connects to the manager that `NOTIFY_SOCKET` names, now, because later the file system may be out of reach. A failure
    /// is only logged; the service works without a manager.
    pub fn from_env() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|name| {
            connect(&name)
                .inspect_err(|error| log::warn!("NOTIFY_SOCKET: {error}"))
                .ok()
        });
        Self(socket)
    }

    /// The service is ready.
    pub fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The current state, for people.
    pub fn status(&self, status: &str) {
        self.tell(&format!("STATUS={status}"));
    }

    /// The service is about to end.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping");
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.0
            && let Err(error) = socket.send(state.as_bytes())
        {
            log::debug!("NOTIFY_SOCKET: {error}");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    socket.connect_addr(&address)?;
    // The service does not wait for its manager.
    socket.set_nonblocking(true)?;
    Ok(socket)
}
