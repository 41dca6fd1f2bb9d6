// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to a device's front end, as other threads see it.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::threads::server::StopEvent;

/// The connection to a device's front end, if there is one. Any thread can look at it and end it for good.
#[derive(Debug)]
pub struct FrontEndLink {
    end: StopEvent,
    ended: AtomicBool,
    /// The front end's connection, to shut it down.
    current: Mutex<Option<UnixStream>>,
    connections: AtomicU64,
    failures: AtomicU64,
}

impl FrontEndLink {
    /// A link without a front end.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            end: StopEvent::new()?,
            ended: AtomicBool::new(false),
            current: Mutex::default(),
            connections: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// Whether a front end is connected.
    pub fn is_connected(&self) -> bool {
        self.current.lock().is_some()
    }

    /// How many front ends have connected so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many of them were hung up on for what they did.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Lets no more front ends in and hangs up on the present one, even if it has stalled.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.end.set();
        if let Some(front) = &*self.current.lock() {
            let _ = front.shutdown(Shutdown::Both);
        }
    }

    /// Becomes readable when no more front ends are let in.
    pub fn end_event(&self) -> &StopEvent {
        &self.end
    }

    /// Whether no more front ends are let in.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Notes that `front` has connected.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn connected(&self, front: &UnixStream) -> io::Result<()> {
        let ours = front.try_clone()?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        *self.current.lock() = Some(ours);
        if self.has_ended() {
            // The thread that called [`FrontEndLink::end`] may have missed this front end.
            let _ = front.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// Notes that the front end has gone, or that it was hung up on because it `failed`.
    pub fn disconnected(&self, failed: bool) {
        *self.current.lock() = None;
        self.failures.fetch_add(failed.into(), Ordering::Relaxed);
    }
}
