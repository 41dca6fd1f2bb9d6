// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that tells the balloon the time: it asks for statistics and moves its target then.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::threads;
use crate::sandbox::seccomp::Group;
use crate::vhost_user::backend::Backend;

/// The longest time between two ticks: so long may a new interval go unnoticed.
const LONGEST: Duration = Duration::from_secs(1);

/// Ticks until it is dropped.
#[derive(Debug)]
pub struct Ticker {
    /// The thread ends when this has gone.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts to tick for the balloon of `backend`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(backend: Arc<Backend>) -> io::Result<Self> {
        let (alive, end) = mpsc::channel();
        let thread = threads::spawn(Group::Ticker, move || run(&backend, &end))?;
        Ok(Self {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(backend: &Backend, end: &Receiver<()>) {
    loop {
        let now = Instant::now();
        let next = backend.balloon().tick(now);
        let pause = next.map_or(LONGEST, |next| {
            next.saturating_duration_since(now).min(LONGEST)
        });
        if end.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}
