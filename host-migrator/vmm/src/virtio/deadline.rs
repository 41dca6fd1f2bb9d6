// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A time limit for every answer of the back end.
//!
//! A socket timeout is not enough, because the crate `vhost` repeats a receive that timed out. Only the end of the
//! connection ends its wait. So a thread here shuts the connection down when an answer is overdue.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Cuts a connection when an answer is overdue.
#[derive(Debug)]
pub struct Deadline {
    shared: Arc<Shared>,
    limit: Duration,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    due: Option<Instant>,
    expired: bool,
    closing: bool,
}

/// An answer is due while this lives.
#[derive(Debug)]
pub struct Due {
    shared: Arc<Shared>,
}

impl Deadline {
    /// Watches `connection`, a clone of the one in use. Each answer may take `limit`.
    ///
    /// # Errors
    /// The operating system's, if the thread cannot be started.
    pub fn new(connection: UnixStream, limit: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("vhost-deadline".into())
            .spawn(move || watched.watch(&connection))?;
        Ok(Self {
            shared,
            limit,
            thread: Some(thread),
        })
    }

    /// An answer is due from now on, until the result is dropped.
    pub fn start(&self) -> Due {
        self.shared.state.lock().due = Some(Instant::now() + self.limit);
        self.shared.changed.notify_one();
        Due {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether the connection was shut down because an answer was overdue.
    pub fn expired(&self) -> bool {
        self.shared.state.lock().expired
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        self.shared.state.lock().due = None;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // The thread does not panic, and a panic could not be handled here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watch(&self, connection: &UnixStream) {
        let mut state = self.state.lock();
        while !state.closing {
            let now = Instant::now();
            let wait = match state.due {
                None => Duration::MAX,
                Some(due) if due > now => due - now,
                Some(_) => {
                    state.due = None;
                    state.expired = true;
                    // Fails only if the connection has ended already.
                    let _ = connection.shutdown(Shutdown::Both);
                    continue;
                }
            };
            self.changed.wait_for(&mut state, wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_overdue_answer_ends_the_wait() {
        let (mut ours, _theirs) = UnixStream::pair().unwrap();
        let deadline = Deadline::new(ours.try_clone().unwrap(), Duration::from_millis(20)).unwrap();
        let due = deadline.start();
        assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
        drop(due);
        assert!(deadline.expired());
    }

    #[test]
    fn an_answer_in_time_leaves_the_connection_alone() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let deadline = Deadline::new(ours.try_clone().unwrap(), Duration::from_secs(600)).unwrap();
        for _ in 0..100 {
            drop(deadline.start());
        }
        assert!(!deadline.expired());
        drop((deadline, ours));
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    }
}
