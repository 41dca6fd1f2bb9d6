// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A thread that tells the balloon the time, so that it asks for statistics and moves its target. At the end of the
//! device it tells the guest that hinting is over. That touches guest memory, where only the device's own threads may hang.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use spec::control::RoundEnd;

use crate::sandbox::seccomp::Group;
use crate::threads;
use crate::vhost_user::backend::Backend;

/// The longest time between two ticks. A new interval may go unnoticed for this long.
const LONGEST: Duration = Duration::from_secs(1);

/// Ticks until it is dropped.
#[derive(Debug)]
pub struct Ticker {
    /// Dropping this ends the thread, and hinting too if the thread was told so.
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

    /// Tells the thread to end a round of hints for a person and then itself. Does not wait for that.
    pub fn end_hinting(&mut self) {
        if let Some(alive) = self.alive.take() {
            // If the thread has ended, it has panicked and cannot end hinting.
            let _ = alive.send(());
        }
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
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
        match end.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(()) => {
                backend.balloon().end_round(RoundEnd::Stopped);
                return;
            }
        }
    }
}
