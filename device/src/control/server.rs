// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One thread serves a bounded number of connections. They take turns, one request each, so that none can hold up the
//! others.
//!
//! When there are too many, one is closed: one that has not said Hello, or else the one that has been silent
//! for longest. The migrator's connection is never closed.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::busy::PATIENCE;
use super::connection::Connection;
use super::peer::Peer;
use crate::sandbox::seccomp::Group;
use crate::sockets::{ACCEPT_PAUSE, BoundSocket};
use crate::threads::ServerThread;
use crate::threads::server::StopEvent;
use crate::vhost_user::backend::Backend;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// How long to wait for the device when telling it again of the end of a connection.
const BRIEF: Duration = Duration::from_millis(50);
/// When a device that was busy is told again of the end of a connection.
const AGAIN: Duration = Duration::from_millis(100);

/// Serves the control socket in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct ControlServer(ServerThread);

impl ControlServer {
    /// Serves clients of `listener` with the device of `backend`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(listener: BoundSocket, backend: Arc<Backend>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let run = move |stop| Server::new(listener, backend, stop).run();
        ServerThread::start(Group::Control, run).map(Self)
    }

    /// Tells the thread to end, without waiting for that. Hinting ends with it, if its connections have begun any.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Whether the thread has ended.
    pub fn has_stopped(&self) -> bool {
        self.0.has_stopped()
    }
}

struct Server {
    listener: BoundSocket,
    backend: Arc<Backend>,
    stop: StopEvent,
    connections: Vec<Connection>,
    /// Peers that have gone and of whose end a busy device must still be told.
    leaving: Vec<Peer>,
    /// No client is accepted before this time.
    deaf_until: Option<Instant>,
}

/// What a wait has brought.
struct Ready {
    stop: bool,
    knock: bool,
    /// By place in [`Server::connections`].
    connections: Vec<bool>,
}

impl Server {
    fn new(listener: BoundSocket, backend: Arc<Backend>, stop: StopEvent) -> Self {
        Self {
            listener,
            backend,
            stop,
            connections: Vec::new(),
            leaving: Vec::new(),
            deaf_until: None,
        }
    }

    /// Serves until it is told to stop.
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(ready) if ready.stop => break,
                Ok(ready) => {
                    self.serve(&ready.connections);
                    if ready.knock {
                        self.let_in();
                    }
                }
                Err(error) => {
                    log::error!("the control socket is no longer served: {error}");
                    break;
                }
            }
        }
        let peers = self.connections.into_iter().map(Connection::into_peer);
        for mut peer in peers.chain(self.leaving) {
            peer.gone(&self.backend, PATIENCE);
        }
    }

    /// Waits for something to do, or the end of somebody's time.
    fn wait(&mut self) -> io::Result<Ready> {
        let now = Instant::now();
        self.deaf_until = self.deaf_until.filter(|&end| end > now);
        let deadlines = self.connections.iter().filter_map(Connection::deadline);
        let busy = self
            .connections
            .iter()
            .any(Connection::is_busy)
            .then_some(now);
        let again = (!self.leaving.is_empty()).then_some(now + AGAIN);
        let first = deadlines
            .chain(self.deaf_until)
            .chain(busy)
            .chain(again)
            .min();
        let knocks = match self.deaf_until {
            None => PollFlags::IN,
            Some(_) => PollFlags::empty(),
        };
        let mut polled = vec![
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), knocks),
        ];
        polled.extend(
            self.connections
                .iter()
                .map(|connection| PollFd::new(connection, connection.waits_for())),
        );
        let timeout = first
            .map(|end| end.saturating_duration_since(now))
            .and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, timeout.as_ref()) {
            // An interrupted wait is like one without events.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            stop: ready.next().unwrap_or(false),
            knock: ready.next().unwrap_or(false),
            connections: ready
                .zip(&self.connections)
                .map(|(ready, connection)| ready || connection.is_busy())
                .collect(),
        })
    }

    /// Gives each connection that is `ready` its turn, and closes those that have ended.
    fn serve(&mut self, ready: &[bool]) {
        let now = Instant::now();
        for (place, &ready) in ready.iter().enumerate() {
            let migrates = |other: &(usize, &Connection)| other.0 != place && other.1.migrates();
            let another_migrates = self.connections.iter().enumerate().any(|c| migrates(&c))
                || self.leaving.iter().any(Peer::migrates);
            let connection = &mut self.connections[place];
            if ready {
                connection.turn(&self.backend, another_migrates);
            } else if connection.deadline().is_some_and(|end| end <= now) {
                connection.end("it has not finished in time");
            }
            if connection.is_over() {
                connection.gone(&self.backend, PATIENCE);
            }
        }
        let over = |connection: &mut Connection| connection.is_over();
        let over = self.connections.extract_if(.., over);
        self.leaving.extend(over.map(Connection::into_peer));
        self.leaving
            .retain_mut(|peer| !peer.gone(&self.backend, BRIEF));
    }

    fn let_in(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                log::warn!("control socket: {error}");
                self.deaf_until = Some(Instant::now() + ACCEPT_PAUSE);
                return;
            }
        };
        if self.connections.len() >= MAX_CONNECTIONS {
            let weakest = self
                .connections
                .iter()
                .enumerate()
                .filter(|(_, connection)| !connection.migrates())
                .min_by_key(|(_, connection)| connection.standing())
                .map(|(place, _)| place);
            if let Some(place) = weakest {
                self.connections
                    .remove(place)
                    .end("there are too many connections");
            }
        }
        match Connection::new(stream) {
            Ok(connection) => self.connections.push(connection),
            Err(error) => log::warn!("control socket: {error}"),
        }
    }
}
