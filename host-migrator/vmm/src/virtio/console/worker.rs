// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port's thread. It waits for guest and host, and keeps the port connected to the host's socket.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::device::{Device, Pending};
use crate::virtio::device::signal;

/// The pause between two connections. It limits the cost of a guest that keeps opening and closing its port.
const AGAIN: Duration = Duration::from_millis(200);

/// The sources of events.
const KICK: u64 = 0;
const HOST: u64 = 1;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    device: Arc<Device>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serves the port of `device`, and connects it to `socket` when somebody listens there.
    ///
    /// # Errors
    /// The system's, if the thread cannot be started.
    pub fn start(device: &Arc<Device>, socket: PathBuf) -> io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let epoll = Epoll::new()?;
        let kicked = EpollEvent::new(EventSet::IN, KICK);
        epoll.ctl(ControlOperation::Add, device.kick.as_raw_fd(), kicked)?;
        let work = Work {
            epoll,
            device: Arc::clone(device),
            ending: Arc::clone(&ending),
            socket,
            connect_at: Instant::now(),
            missed: false,
        };
        let thread = thread::Builder::new()
            .name("agent-port".into())
            .spawn(move || work.run())?;
        Ok(Self {
            device: Arc::clone(device),
            ending,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        signal(&self.device.kick);
        // A thread that panicked has printed why.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Work {
    epoll: Epoll,
    device: Arc<Device>,
    ending: Arc<AtomicBool>,
    socket: PathBuf,
    /// The earliest time of the next attempt to connect.
    connect_at: Instant,
    /// Whether the last attempt failed.
    missed: bool,
}

impl Work {
    fn run(mut self) {
        while !self.ending.load(Ordering::SeqCst) {
            let pending = self.device.turn();
            let now = Instant::now();
            let wants_host = pending.as_ref().is_some_and(|pending| pending.wants_host);
            if wants_host && self.connect_at <= now {
                self.connect_at = now + AGAIN;
                self.join();
                continue;
            }
            let timeout = match &pending {
                Some(pending) if pending.turn.again => Some(Duration::ZERO),
                _ if wants_host => Some(self.connect_at - now),
                _ => None,
            };
            if let Err(error) = self.wait(pending, timeout) {
                log::error!("agent port: it has stopped: {error}");
                return;
            }
        }
    }

    /// Waits for the next event.
    fn wait(&self, pending: Option<Pending>, timeout: Option<Duration>) -> io::Result<()> {
        let turn = pending.as_ref().map(|pending| pending.turn);
        let host = pending.and_then(|pending| pending.host);
        // A stopped device does not wait for the host: one that has hung up would wake it all the time.
        let host = turn.zip(host);
        if let Some((turn, host)) = &host {
            let mut wanted = EventSet::empty();
            wanted.set(EventSet::IN, turn.read);
            wanted.set(EventSet::OUT, turn.write);
            let wanted = EpollEvent::new(wanted, HOST);
            self.epoll
                .ctl(ControlOperation::Add, host.as_raw_fd(), wanted)?;
        }
        let mut events = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(milliseconds(timeout), &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            count => count?,
        };
        if let Some((_, host)) = &host {
            let nothing = EpollEvent::default();
            self.epoll
                .ctl(ControlOperation::Delete, host.as_raw_fd(), nothing)?;
        }
        let gone = EventSet::HANG_UP | EventSet::ERROR;
        let has_gone =
            |event: &EpollEvent| event.data() == HOST && event.event_set().intersects(gone);
        if events[..count].iter().any(has_gone) {
            self.device.hang_up();
        }
        // Fails if there was no kick.
        let _ = self.device.kick.read();
        Ok(())
    }

    fn join(&mut self) {
        match reach(&self.socket) {
            Ok(host) => {
                self.missed = false;
                log::info!("agent port: connected to {}", self.socket.display());
                self.device.join(host);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.missed, true) {
                    let socket = self.socket.display();
                    log::warn!(
                        "agent port: cannot connect to {socket}: {error}; the guest runs on, and the port keeps trying"
                    );
                }
            }
        }
    }
}

/// Connects to `path` without blocking. The connection does not block either.
fn reach(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// `timeout` in milliseconds for epoll, rounded up; -1 is for ever.
fn milliseconds(timeout: Option<Duration>) -> i32 {
    timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    })
}
