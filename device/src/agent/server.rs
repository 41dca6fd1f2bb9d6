// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The socket that is the host's end of the agent's port. The VMM connects to it, for the guest.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use spec::agent::Deframer;

use crate::daemon::threads;
use crate::sandbox::seccomp::Group;
use crate::sockets::{self, BoundSocket};
use crate::vhost_user::backend::Backend;

/// After a frame of no use the agent is not heard for so long: one that floods the device with them has to wait.
const REST: Duration = Duration::from_millis(10);

/// Serves one agent after the other in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct AgentServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl AgentServer {
    /// Takes hints for the balloon of `backend` from whoever connects to `listener`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(listener: BoundSocket, backend: Arc<Backend>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let server = Server {
            listener,
            backend,
            stop: Arc::clone(&stop),
        };
        let thread = threads::spawn(Group::Agent, move || server.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for AgentServer {
    fn drop(&mut self) {
        // The counter of an eventfd that nobody else writes cannot overflow.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    listener: BoundSocket,
    backend: Arc<Backend>,
    stop: Arc<OwnedFd>,
}

impl Server {
    fn run(&self) {
        while self.readable(&*self.listener) {
            match self.listener.accept() {
                Ok((port, _)) => self.serve(&Arc::new(port)),
                Err(error) => {
                    log::warn!("agent socket: {error}");
                    // Out of file descriptors, say: the waiting peer would make this loop spin.
                    if !self.rest(Duration::from_millis(100)) {
                        return;
                    }
                }
            }
        }
    }

    /// Serves one connection until it ends.
    fn serve(&self, port: &Arc<UnixStream>) {
        log::info!("the guest's agent can be reached");
        self.backend.balloon().agent_came(Arc::clone(port));
        if let Err(error) = self.listen(port) {
            log::warn!("agent socket: {error}");
        }
        self.backend.balloon().agent_gone();
        log::info!("the guest's agent has gone");
    }

    fn listen(&self, port: &Arc<UnixStream>) -> io::Result<()> {
        let mut input = Box::<Deframer>::default();
        while self.readable(&**port) {
            match (&**port).read(input.space()) {
                Ok(0) => return Ok(()),
                Ok(count) => input.filled(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It went without reading what it was asked: an end like any other.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
            while let Some(frame) = input.next_frame() {
                let useful = self.backend.balloon().agent_said(&frame);
                if !useful && !self.rest(REST) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for something to read; `false` when the server is to stop.
    fn readable(&self, socket: &impl AsFd) -> bool {
        sockets::wait([socket.as_fd(), self.stop.as_fd()], None).is_ok_and(|[_, stopped]| !stopped)
    }

    /// Waits for so long; `false` when the server is to stop.
    fn rest(&self, time: Duration) -> bool {
        let end = Some(Instant::now() + time);
        sockets::wait([self.stop.as_fd()], end).is_err()
    }
}
