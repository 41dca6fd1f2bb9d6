// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Heartbeats: a side that has nothing to send, because it waits or works, shows the peer that it is alive.
//!
//! A thread of its own sends them, so they go on while a disk, a device or a kernel call blocks the migration's thread.
//! They show that the process lives and that the connection carries bytes. They do not show that the migration makes
//! progress, so steps with a time limit also have a deadline.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::sections::SectionWriter;

/// A side that has sent nothing for this long sends a heartbeat. The peer expects one each second; half of that leaves
/// time for a thread that wakes late.
pub(super) const INTERVAL: Duration = Duration::from_millis(500);

/// Sends heartbeats from its start until it is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeats {
    /// Dropped to end the thread.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeats {
    /// Begins to send heartbeats on each of `outs`. Both sides must have sent everything there that comes before the first section.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(outs: Vec<SectionWriter>) -> io::Result<Self> {
        let (alive, ended) = channel();
        let thread = thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || {
                let mut wait = INTERVAL;
                while ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    let next = outs.iter().map(|out| out.beat(INTERVAL)).min();
                    wait = next.unwrap_or(INTERVAL);
                }
            })?;
        Ok(Self {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // The thread never waits for the peer, so it ends at once. If it panicked, only the heartbeats ended.
            let _ = thread.join();
        }
    }
}
