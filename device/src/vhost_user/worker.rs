// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls the vhost-user crate's worker thread and waits until it answers.
//!
//! Three tasks need this:
//! - The crate shows the device its rings only together with an event. So the device makes one before it listens to the
//!   front end: a migrator that comes as soon as the rings run finds the device ready.
//! - When a ring is stopped, the worker may still be about to read a kick. If the front end gives the ring a new kick
//!   before that, the worker finds nothing to read and ends for good.
//! - When the front end has gone, the worker must end. The crate has an exit event for that, but leaks a file
//!   descriptor with each: a device that outlives many front ends would run out of them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use spec::balloon::QueueNumbering;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler};
use vmm_sys_util::epoll::EventSet;

/// The number of the worker's event for calls. The crate has taken those below the number of queues.
pub const EVENT: u16 = QueueNumbering::MAX_QUEUES as u16 + 1;
/// A worker that does not answer within this time has ended.
const PATIENCE: Duration = Duration::from_secs(1);

/// Calls the worker and counts its answers.
#[derive(Debug)]
pub struct WorkerCall {
    event: OwnedFd,
    calls: Mutex<Calls>,
    passed: Condvar,
}

#[derive(Debug, Default)]
struct Calls {
    /// How often the worker has answered.
    passes: u64,
    /// The worker shall end with its next answer.
    dismissed: bool,
}

impl WorkerCall {
    /// A call that no worker waits for yet.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            calls: Mutex::default(),
            passed: Condvar::new(),
        })
    }

    /// Lets `worker` wait for the calls from now on, as event [`EVENT`].
    ///
    /// # Errors
    /// If the worker's epoll takes no more events.
    pub fn register<T: VhostUserBackend>(&self, worker: &VringEpollHandler<T>) -> io::Result<()> {
        self.calls.lock().dismissed = false;
        let set = EventSet::IN | EventSet::EDGE_TRIGGERED;
        worker.register_listener(self.event.as_raw_fd(), set, u64::from(EVENT))
    }

    /// The worker's answer to a call.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] if the worker shall end: the crate's worker ends on an error.
    pub fn pass(&self) -> io::Result<()> {
        let mut calls = self.calls.lock();
        calls.passes += 1;
        self.passed.notify_all();
        if calls.dismissed {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    /// Calls the worker and waits for its answer. All that it had begun before is done then. The caller must not hold a
    /// lock that the worker may wait for.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it does not answer.
    pub fn wait(&self) -> io::Result<()> {
        let mut calls = self.calls.lock();
        let before = calls.passes;
        self.call();
        self.passed
            .wait_while_for(&mut calls, |calls| calls.passes == before, PATIENCE);
        if calls.passes == before {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Calls the worker to end.
    pub fn dismiss(&self) {
        self.calls.lock().dismissed = true;
        self.call();
    }

    fn call(&self) {
        rustix::io::write(&self.event, &1u64.to_ne_bytes())
            .expect("an eventfd counts more calls than can ever be made");
    }
}
