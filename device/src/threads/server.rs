// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that serves until it is told to stop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use crate::sandbox::seccomp::Group;
use crate::threads::context;

/// A thread that serves until this value is dropped. The drop waits for its end.
#[derive(Debug)]
pub struct ServerThread {
    stop: StopEvent,
    thread: Option<JoinHandle<()>>,
}

/// Becomes readable, and stays so, when the thread shall end.
#[derive(Clone, Debug)]
pub struct StopEvent(Arc<OwnedFd>);

impl ServerThread {
    /// Starts a thread of `group`. `serve` must return when its argument becomes readable.
    ///
    /// # Errors
    /// If the system allows no more threads or file descriptors.
    pub fn start(group: Group, serve: impl FnOnce(StopEvent) + Send + 'static) -> io::Result<Self> {
        let stop = StopEvent::new()?;
        let event = stop.clone();
        let thread = context::spawn(group, move || serve(event))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Tells the thread to end. Does not wait for that.
    pub fn stop(&self) {
        self.stop.set();
    }

    /// Whether the thread has ended.
    pub fn has_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread is in the log already.
            let _ = thread.join();
        }
    }
}

impl StopEvent {
    /// An event that is not set.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(eventfd(0, flags)?)))
    }

    /// Makes the event readable.
    pub fn set(&self) {
        // The counter of an eventfd overflows only after more calls than can ever be made.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for StopEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    use crate::sockets;

    #[test]
    fn the_thread_serves_until_it_is_told_to_stop() {
        let (ended, end) = std::sync::mpsc::channel();
        let thread = ServerThread::start(Group::Metrics, move |stop| {
            let patience = Instant::now() + Duration::from_secs(60);
            let waited = sockets::wait([stop.as_fd()], Some(patience));
            ended.send(waited.is_ok()).unwrap();
        });
        let thread = thread.unwrap();
        assert!(!thread.has_stopped());
        thread.stop();
        assert!(end.recv().unwrap());
        drop(thread);
    }
}
