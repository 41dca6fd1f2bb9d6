// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Serves a balloon's back end while it lives, and connects to another when it is lost.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use host_migrator::GuestRam;

use super::backend_channel;
use super::device::Device;
use super::error::{VirtioError, io_error};
use super::front_end::{FrontEnd, QueueEvents};

/// How often a connection to another back end is tried.
const RETRY: Duration = Duration::from_millis(200);

/// A connected back end.
#[derive(Debug)]
pub struct Connection {
    /// Our side of the connection.
    pub front_end: FrontEnd,
    /// The channel for the back end's own requests.
    pub served: Served,
}

/// A back end's own requests.
#[derive(Debug)]
pub struct Served {
    connection: UnixStream,
    changes: Receiver<()>,
    channel: Option<JoinHandle<()>>,
}

impl Connection {
    /// Becomes the owner of the back end at the other end of `connection`, and gives it the guest's memory.
    ///
    /// # Errors
    /// [`VirtioError`] if the back end lacks something, or a request fails.
    pub fn open(
        connection: UnixStream,
        ram: &Arc<GuestRam>,
        events: &Arc<[QueueEvents]>,
    ) -> Result<Self, VirtioError> {
        let action = "share the connection to the balloon back end";
        let clone = || connection.try_clone().map_err(io_error(action));
        let (ours, theirs) =
            UnixStream::pair().map_err(io_error("make a channel for the balloon back end"))?;
        // Before the first request, because the back end may wait for an acknowledgement before it answers.
        let (changes, channel) = backend_channel::serve(clone()?, ours)
            .map_err(io_error("serve the balloon back end's channel"))?;
        let served = Served {
            connection: clone()?,
            changes,
            channel: Some(channel),
        };
        let front_end = FrontEnd::new(connection, theirs, Arc::clone(ram), Arc::clone(events))?;
        Ok(Self { front_end, served })
    }
}

impl Served {
    /// Another handle of the connection.
    ///
    /// # Errors
    /// [`VirtioError`] if the connection cannot be duplicated.
    pub fn connection(&self) -> Result<UnixStream, VirtioError> {
        let clone = self.connection.try_clone();
        clone.map_err(io_error("share the connection to the balloon back end"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It fails only if the connection has ended already.
        let _ = self.connection.shutdown(Shutdown::Both);
        if let Some(channel) = self.channel.take() {
            // A thread that panicked has printed why.
            let _ = channel.join();
        }
    }
}

/// The thread that serves back ends. Close the device before this is dropped.
#[derive(Debug)]
pub struct Keeper {
    /// Dropping this ends the thread.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Serves `served` for `device`, and connects to another back end on `socket` when it has ended.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        device: &Arc<Device>,
        socket: &Path,
        events: Arc<[QueueEvents]>,
        served: Served,
    ) -> io::Result<Self> {
        let (alive, ended) = channel();
        let search = Search {
            device: Arc::clone(device),
            socket: socket.to_owned(),
            events,
            ended,
        };
        let thread = thread::Builder::new()
            .name("balloon-keeper".into())
            .spawn(move || search.keep(served))?;
        Ok(Self {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has printed why.
            let _ = thread.join();
        }
    }
}

struct Search {
    device: Arc<Device>,
    socket: PathBuf,
    events: Arc<[QueueEvents]>,
    ended: Receiver<()>,
}

impl Search {
    fn keep(&self, mut served: Served) {
        loop {
            for () in &served.changes {
                self.device.refresh_config();
            }
            self.device.hung_up();
            match self.next() {
                Some(next) => served = next,
                None => return,
            }
        }
    }

    /// Waits for another back end; `None` when the device is closed.
    fn next(&self) -> Option<Served> {
        let mut told = String::new();
        while self.ended.recv_timeout(RETRY) == Err(RecvTimeoutError::Timeout) {
            if self.device.is_closing() {
                break;
            }
            let Ok(stream) = UnixStream::connect(&self.socket) else {
                continue;
            };
            match self.take(stream) {
                Ok(served) => {
                    log::info!("balloon: another back end has replaced the lost one");
                    return Some(served);
                }
                // Log each reason only once, because this is tried again and again.
                Err(error) if error.to_string() != told => {
                    told = error.to_string();
                    log::warn!("balloon: a new back end cannot be used: {told}");
                }
                Err(_) => {}
            }
        }
        None
    }

    fn take(&self, stream: UnixStream) -> Result<Served, VirtioError> {
        let connection = Connection::open(stream, &self.device.ram(), &self.events)?;
        let Connection { front_end, served } = connection;
        let handle = served.connection()?;
        self.device.replace_back_end(front_end, handle)?;
        Ok(served)
    }
}
