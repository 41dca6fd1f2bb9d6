// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front ends of one device: they come one after the other, and the device stays.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::error::{DaemonError, DaemonEvent};
use crate::guest::config_channel::ConfigChannel;
use crate::sockets::{self, ACCEPT_PAUSE, BoundSocket};
use crate::vhost_user::backend::Backend;
use crate::vhost_user::front_end;
use crate::vhost_user::link::FrontEndLink;

/// Where front ends come from.
#[derive(Debug)]
pub enum FrontEndSource {
    /// Front ends connect to a non-blocking socket.
    Listener {
        /// The socket.
        socket: BoundSocket,
        /// Serve only one.
        once: bool,
    },
    /// One front end, which is connected.
    Connected(UnixStream),
}

/// Serves the front ends of a device, in a thread of its own.
#[derive(Debug)]
pub struct FrontEnds {
    /// Where the front ends come from.
    pub source: FrontEndSource,
    /// The device.
    pub backend: Arc<Backend>,
    /// Through which the device reports changes of its configuration to them.
    pub channel: Arc<ConfigChannel>,
    /// The connection to the present front end.
    pub link: Arc<FrontEndLink>,
    /// Receives an event when a front end comes or goes.
    pub events: Sender<DaemonEvent>,
}

impl FrontEnds {
    /// Serves front ends until the last has gone or [`FrontEndLink::end`] is called.
    ///
    /// # Errors
    /// [`DaemonError`]. A misbehaving front end ends this only if the device serves no other.
    pub fn serve(&self) -> Result<(), DaemonError> {
        match &self.source {
            FrontEndSource::Connected(front) => self.attend(front),
            FrontEndSource::Listener { socket, once } => {
                while let Some(front) = self.next(socket)? {
                    let result = self.attend(&front);
                    if *once {
                        return result;
                    }
                    if let Err(error) = result {
                        log::warn!("{error}");
                    }
                }
                Ok(())
            }
        }
    }

    /// The next front end; `None` if the end comes first.
    fn next(&self, socket: &BoundSocket) -> Result<Option<UnixStream>, DaemonError> {
        let end = self.link.end_event().as_fd();
        loop {
            match sockets::wait([end, socket.as_fd()], None) {
                Ok([true, _]) => return Ok(None),
                Ok(_) => {}
                Err(error) => return Err(DaemonError::Accept(error)),
            }
            match socket.accept() {
                Ok((front, _)) => return Ok(Some(front)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("cannot accept a front end: {error}");
                    let rested = sockets::wait([end], Some(Instant::now() + ACCEPT_PAUSE));
                    if rested.is_ok() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Serves a front end until it hangs up.
    fn attend(&self, front: &UnixStream) -> Result<(), DaemonError> {
        log::info!("a front end has connected");
        self.link.connected(front).map_err(DaemonError::Accept)?;
        let _ = self.events.send(DaemonEvent::Changed);
        let result = front_end::serve(front, &self.backend, &self.channel);
        self.link.disconnected(result.is_err());
        let _ = self.events.send(DaemonEvent::Changed);
        log::info!("the front end has disconnected");
        if self.link.has_ended() {
            return Ok(());
        }
        Ok(result?)
    }
}
