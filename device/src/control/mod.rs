// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: a migrator and people, requests and replies of [`spec::control`].
//!
//! | module | what it is |
//! |---|---|
//! | `server` | one thread, a bounded number of connections that take turns |
//! | `connection` | bytes in, bytes out, and how long that may take |
//! | `session` | what a connection may ask, and the answer |
//! | `people` | the answers to people |
//! | `page_map` | a picture of guest memory as a file |

mod connection;
mod page_map;
mod people;
mod server;
mod session;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::daemon::threads;
use crate::sandbox::seccomp::Group;
use crate::sockets::BoundSocket;
use crate::vhost_user::backend::Backend;
use server::Server;

/// How long a request waits for a device that is busy. Giving back much memory takes a while; touching memory that
/// never answers takes for ever.
const PATIENCE: Duration = Duration::from_secs(4);

/// Serves the control socket in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct ControlServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Serves those who connect to `listener` and ask something of `backend`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(listener: BoundSocket, backend: Arc<Backend>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let server = Server::new(listener, backend, Arc::clone(&stop))?;
        let thread = threads::spawn(Group::Control, move || server.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl ControlServer {
    /// Tells the thread to end, without waiting for that. Hinting ends with it, if its connections have begun any.
    pub fn stop(&self) {
        // The counter of an eventfd that nobody else writes cannot overflow.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    /// Whether the thread has ended.
    pub fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
