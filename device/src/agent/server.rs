// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket at the host's end of the agent's port. The VMM connects to it on the guest's behalf.
//!
//! It serves one agent at a time. When another one comes, the server sends Hello to the first. If the first disconnects or
//! stays silent for `PATIENCE`, the other takes its place; otherwise the other is closed.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use spec::agent::proof::Key;

use super::connection::Connection;
use super::door::Door;
use crate::sandbox::seccomp::Group;
use crate::sockets::{self, ACCEPT_PAUSE, BoundSocket};
use crate::threads::ServerThread;
use crate::threads::server::StopEvent;
use crate::vhost_user::backend::Backend;

/// The pause after a useless frame, so that an agent cannot keep the device busy with such frames.
const USELESS_FRAME_PAUSE: Duration = Duration::from_millis(10);
/// An agent that does not answer Hello for this long is replaced by another one that has connected.
const PATIENCE: Duration = Duration::from_secs(3);

/// Serves one agent after the other in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct AgentServer {
    _thread: ServerThread,
}

impl AgentServer {
    /// Takes hints for the balloon of `backend` from an agent that connects to `listener`. With a `key` the agent must prove
    /// that it has the key.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        listener: BoundSocket,
        key: Option<Key>,
        backend: Arc<Backend>,
    ) -> io::Result<Self> {
        // Non-blocking: a client that has gone before it is accepted must not make the thread wait.
        listener.set_nonblocking(true)?;
        let run = move |stop| {
            let server = Server {
                listener,
                backend,
                stop,
                door: Door::new(key),
                closed_until: None,
                served: None,
                successor: None,
            };
            server.run();
        };
        Ok(Self {
            _thread: ServerThread::start(Group::Agent, run)?,
        })
    }
}

struct Server {
    listener: BoundSocket,
    backend: Arc<Backend>,
    stop: StopEvent,
    door: Door,
    /// Until when no client is accepted, because one could not be accepted.
    closed_until: Option<Instant>,
    served: Option<Served>,
    /// The agent that replaces the served one if that stays silent until the given time.
    successor: Option<(Connection, Instant)>,
}

/// The agent.
struct Served {
    connection: Connection,
    /// Until when it is not read from, because it sent a useless frame.
    rests_until: Option<Instant>,
}

/// Whose socket is readable.
#[derive(Clone, Copy)]
enum Whose {
    Stop,
    Listener,
    Agent,
    Newcomer(usize),
}

impl Server {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let deadline = self.mind_the_time(now);
            let ready = match self.wait(deadline) {
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => continue,
                Err(error) => {
                    log::error!("agent socket: {error}: the guest's agent is no longer served");
                    break;
                }
            };
            // From the last on, because removing a newcomer changes the numbers after it.
            for whose in ready.into_iter().rev() {
                match whose {
                    Whose::Stop => return self.end_agent(),
                    Whose::Listener => self.accept(),
                    Whose::Agent => self.hear_agent(),
                    Whose::Newcomer(number) => {
                        if let Some(agent) = self.door.hear(number) {
                            self.proven(agent);
                        }
                    }
                }
            }
        }
        self.end_agent();
    }

    /// Does what is due. Returns when to call this again.
    fn mind_the_time(&mut self, now: Instant) -> Option<Instant> {
        self.closed_until = self.closed_until.filter(|until| *until > now);
        if let Some((successor, _)) = self.successor.take_if(|(_, until)| *until <= now) {
            log::warn!("the guest's agent does not answer and is replaced by another");
            self.end_agent();
            self.begin_agent(successor);
        }
        if let Some(served) = &mut self.served
            && served.rests_until.take_if(|until| *until <= now).is_some()
        {
            self.take_frames();
        }
        let rest = self.served.as_ref().and_then(|served| served.rests_until);
        let successor = self.successor.as_ref().map(|(_, until)| *until);
        let closed = self.closed_until.or(self.door.closed_until(now));
        let due = [self.door.expire(now), rest, successor, closed];
        due.into_iter().flatten().min()
    }

    /// Waits for something to read, until `deadline`.
    fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<Whose>> {
        let mut whose = vec![Whose::Stop];
        let mut sockets = vec![self.stop.as_fd()];
        if let Some(served) = &self.served
            && served.rests_until.is_none()
        {
            whose.push(Whose::Agent);
            sockets.push(served.connection.as_fd());
        }
        if self.closed_until.is_none() && self.door.closed_until(Instant::now()).is_none() {
            whose.push(Whose::Listener);
            sockets.push(self.listener.as_fd());
        }
        for (number, socket) in self.door.sockets().enumerate() {
            whose.push(Whose::Newcomer(number));
            sockets.push(socket);
        }
        let mut polled: Vec<PollFd<'_>> = sockets
            .into_iter()
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        sockets::wait_for(&mut polled, deadline)?;
        let ready = whose.into_iter().zip(&polled);
        let ready = ready.filter(|(_, polled)| !polled.revents().is_empty());
        Ok(ready.map(|(whose, _)| whose).collect())
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((port, _)) => {
                if let Some(agent) = self.door.let_in(port, Instant::now()) {
                    self.proven(agent);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::warn!("agent socket: {error}");
                self.closed_until = Some(Instant::now() + ACCEPT_PAUSE);
            }
        }
    }

    /// `agent` has been accepted as the guest's agent.
    fn proven(&mut self, agent: Connection) {
        if self.served.is_none() {
            self.begin_agent(agent);
        } else if self.successor.is_none() {
            self.backend.balloon().greet_agent();
            self.successor = Some((agent, Instant::now() + PATIENCE));
        } else {
            log::warn!("a third agent of the guest has connected and was closed");
        }
    }

    fn begin_agent(&mut self, agent: Connection) {
        log::info!("the guest's agent has connected");
        let port = Arc::clone(agent.port());
        self.served = Some(Served {
            connection: agent,
            rests_until: None,
        });
        self.backend.balloon().agent_came(port);
        // Frames may have arrived together with the proof.
        self.take_frames();
    }

    /// Stops serving the current agent, if there is one.
    fn end_agent(&mut self) {
        if self.served.take().is_some() {
            self.backend.balloon().agent_gone();
            log::info!("the guest's agent has disconnected");
        }
    }

    fn hear_agent(&mut self) {
        let Some(served) = &mut self.served else {
            return;
        };
        match served.connection.fill() {
            Ok(1..) => return self.take_frames(),
            Ok(0) => {}
            Err(error) => log::warn!("agent socket: {error}"),
        }
        self.end_agent();
        if let Some((successor, _)) = self.successor.take() {
            self.begin_agent(successor);
        }
    }

    /// Handles the agent's frames, up to a useless one.
    fn take_frames(&mut self) {
        let Some(served) = &mut self.served else {
            return;
        };
        while let Some(frame) = served.connection.next_frame() {
            if self.successor.take().is_some() {
                log::warn!(
                    "another agent has connected while the guest's agent answers, and was closed"
                );
            }
            if !self.backend.balloon().agent_said(&frame) {
                served.rests_until = Some(Instant::now() + USELESS_FRAME_PAUSE);
                return;
            }
        }
    }
}
