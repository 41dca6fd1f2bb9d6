// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The front ends of one device: they come one after the other, and the device stays.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::{DaemonError, Event};
use crate::sockets::{self, BoundSocket};
use crate::vhost_user::backend::Backend;
use crate::vhost_user::config_channel::ConfigChannel;
use crate::vhost_user::session;

/// The pause after a front end could not be accepted, for example for lack of file descriptors.
const REST: Duration = Duration::from_millis(100);

/// Where front ends come from.
#[derive(Debug)]
pub enum Source {
    /// They connect to a socket, which does not block.
    Listener {
        /// The socket.
        socket: BoundSocket,
        /// Serve only one.
        once: bool,
    },
    /// There is one, and it is connected.
    Connected(UnixStream),
}

/// Serves the front ends of a device, in a thread of its own.
#[derive(Debug)]
pub struct FrontEnds {
    /// Where they come from.
    pub source: Source,
    /// The device.
    pub backend: Arc<Backend>,
    /// How the device tells them of changes.
    pub channel: Arc<ConfigChannel>,
    /// Seen from outside.
    pub presence: Arc<Presence>,
    /// Receives an event when a front end comes or goes.
    pub events: Sender<Event>,
}

impl FrontEnds {
    /// Serves them until the last has gone or [`Presence::end`] is called.
    ///
    /// # Errors
    /// [`DaemonError`]; a front end that misbehaves ends this only if it was to be the only one.
    pub fn serve(&self) -> Result<(), DaemonError> {
        match &self.source {
            Source::Connected(front) => self.attend(front),
            Source::Listener { socket, once } => {
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

    /// The next to connect; `None` if the end comes first.
    fn next(&self, socket: &BoundSocket) -> Result<Option<UnixStream>, DaemonError> {
        let end = self.presence.end.as_fd();
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
                    log::warn!("no front end is let in: {error}");
                    let rested = sockets::wait([end], Some(Instant::now() + REST));
                    if rested.is_ok() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Serves one until it hangs up.
    fn attend(&self, front: &UnixStream) -> Result<(), DaemonError> {
        log::info!("a front end has connected");
        self.presence.come(front)?;
        let _ = self.events.send(Event::Changed);
        let result = session::serve(front, &self.backend, &self.channel);
        self.presence.go(result.is_err());
        let _ = self.events.send(Event::Changed);
        log::info!("the front end has gone");
        if self.presence.has_ended() {
            return Ok(());
        }
        Ok(result?)
    }
}

/// Whether a front end is there, and the end of it all.
#[derive(Debug)]
pub struct Presence {
    end: OwnedFd,
    ended: AtomicBool,
    /// The front end's connection, to hang up on it.
    current: Mutex<Option<UnixStream>>,
    connections: AtomicU64,
    failures: AtomicU64,
}

impl Presence {
    /// Of nobody yet.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            end: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ended: AtomicBool::new(false),
            current: Mutex::default(),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// Whether a front end is connected.
    pub fn is_connected(&self) -> bool {
        self.current().is_some()
    }

    /// How many have connected so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many of them did not end by hanging up, but by what they did.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Lets no more in, and hangs up on the one that is there, wherever it has stalled.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        // The counter of an eventfd that is written once cannot overflow.
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        if let Some(front) = &*self.current() {
            let _ = front.shutdown(Shutdown::Both);
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn come(&self, front: &UnixStream) -> Result<(), DaemonError> {
        let ours = front.try_clone().map_err(DaemonError::Accept)?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        *self.current() = Some(ours);
        if self.has_ended() {
            // The thread that hangs up on front ends may have missed this one.
            let _ = front.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    fn go(&self, failed: bool) {
        *self.current() = None;
        self.failures.fetch_add(failed.into(), Ordering::Relaxed);
    }

    fn current(&self) -> MutexGuard<'_, Option<UnixStream>> {
        // An `Option` has no state that a panic could leave half changed.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
