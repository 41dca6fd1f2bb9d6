// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waiting until the vhost-user crate's worker thread has passed by.
//!
//! Two things need it:
//! - The crate shows the device its rings only when something happens. So something happens, before the front
//!   end is heard: a migrator that comes as soon as the rings run finds the device ready.
//! - When a ring is stopped, the worker may still be about to read a kick. If the front end gives a new kick
//!   before it does, the worker finds nothing there to read, and ends for good.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use spec::balloon::QueueNumbering;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler};
use vmm_sys_util::epoll::EventSet;

/// The number of the worker's event for this; those up to the number of queues are the crate's.
pub const EVENT: u16 = QueueNumbering::MAX_QUEUES as u16 + 1;
/// A worker that takes longer has ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// Calls the worker and counts how often it has come.
#[derive(Debug)]
pub struct WorkerCall {
    event: OwnedFd,
    passes: Mutex<u64>,
    passed: Condvar,
}

impl WorkerCall {
    /// A call that no worker hears yet.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            passes: Mutex::new(0),
            passed: Condvar::new(),
        })
    }

    /// Has `worker` hear the call, as event [`EVENT`].
    ///
    /// # Errors
    /// If the worker's epoll takes no more.
    pub fn register<T: VhostUserBackend>(&self, worker: &VringEpollHandler<T>) -> io::Result<()> {
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        worker.register_listener(self.event.as_raw_fd(), set, u64::from(EVENT))
    }

    /// The worker comes by.
    pub fn pass(&self) {
        *self.lock() += 1;
        self.passed.notify_all();
    }

    /// Calls the worker and waits until it comes: all that it had begun before is then done. Must not be called
    /// with a lock that the worker may wait for.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it does not come.
    pub fn wait(&self) -> io::Result<()> {
        let passes = self.lock();
        let before = *passes;
        rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        let (passes, _) = self
            .passed
            .wait_timeout_while(passes, PATIENCE, |now| *now == before)
            .unwrap_or_else(PoisonError::into_inner);
        if *passes == before {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        // A number has no state that a panic could leave half changed.
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
