// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: one migrator at a time, requests and replies of [`spec::control`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use spec::control::{HEADER_BYTES, Header, MAX_PAYLOAD, Refusal, Reply, Request, VERSION};

use crate::backend::Backend;
use crate::sockets::{self, BoundSocket};

/// How long the rest of a frame may take, and a reply may wait to be read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the control socket in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct ControlServer {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at `path` for migrators of `backend`.
    ///
    /// # Errors
    /// If the socket cannot be bound or the thread not started.
    pub fn start(path: &Path, backend: Arc<Backend>) -> io::Result<Self> {
        let listener = BoundSocket::bind(path)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let server = Server {
            listener,
            backend,
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || server.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // The counter of an eventfd that nobody else writes cannot overflow.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a migrator's connection ended.
#[derive(Debug, thiserror::Error)]
enum PeerError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] spec::control::ControlError),
    #[error("a request with {0} file descriptors")]
    FileDescriptors(usize),
    #[error("it does not speak version {VERSION} of the control protocol")]
    Version,
}

struct Server {
    listener: BoundSocket,
    backend: Arc<Backend>,
    stop: Arc<OwnedFd>,
}

impl Server {
    fn run(&self) {
        while self.readable(&*self.listener) {
            match self.listener.accept() {
                Ok((peer, _)) => self.serve(&peer),
                Err(error) => {
                    log::warn!("control socket: {error}");
                    // Out of file descriptors, say: the waiting peer would make this loop spin.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// Waits for something to read; `false` when the server is to stop.
    fn readable(&self, socket: &impl AsFd) -> bool {
        sockets::wait([socket.as_fd(), self.stop.as_fd()], None).is_ok_and(|[_, stopped]| !stopped)
    }

    fn serve(&self, peer: &UnixStream) {
        let mut session = Session {
            backend: &self.backend,
            greeted: false,
            hinted: false,
        };
        while self.readable(peer) {
            match session.answer_one(peer) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    log::warn!("the migrator's connection ends: {error}");
                    break;
                }
            }
        }
        self.backend.balloon().migrator_gone(session.hinted);
    }
}

/// One migrator's connection.
struct Session<'a> {
    backend: &'a Backend,
    greeted: bool,
    /// It has opened an epoch and not said yet that hinting is over.
    hinted: bool,
}

impl Session<'_> {
    /// Reads a request and answers it; `false` if the peer has hung up.
    fn answer_one(&mut self, peer: &UnixStream) -> Result<bool, PeerError> {
        peer.set_write_timeout(Some(PATIENCE))?;
        let deadline = Some(Instant::now() + PATIENCE);
        let (mut header, mut payload) = ([0; HEADER_BYTES], [0; MAX_PAYLOAD]);
        let mut fds = Vec::new();
        if !sockets::receive(peer, &mut header, &mut fds, deadline)? {
            return Ok(false);
        }
        let header = match Header::from_bytes(&header) {
            Ok(header) => header,
            Err(error) => {
                reply(peer, 0, Reply::Refused(Refusal::BadFrame))?;
                return Err(error.into());
            }
        };
        let payload = &mut payload[..header.length as usize];
        if !payload.is_empty() && !sockets::receive(peer, payload, &mut fds, deadline)? {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let outcome = Request::decode(&header, payload)
            .map_err(PeerError::from)
            .and_then(|request| self.execute(request, fds));
        let (answer, error) = match outcome {
            Ok(answer) => (answer, None),
            Err(error @ PeerError::Version) => (Reply::Refused(Refusal::Version), Some(error)),
            Err(error) => (Reply::Refused(Refusal::BadFrame), Some(error)),
        };
        reply(peer, header.sequence, answer)?;
        error.map_or(Ok(true), Err)
    }

    /// The answer to `request`. An error ends the connection; a refusal does not.
    fn execute(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> Result<Reply, PeerError> {
        let expected = usize::from(matches!(request, Request::SetHintMap { .. }));
        if fds.len() != expected {
            return Err(PeerError::FileDescriptors(fds.len()));
        }
        if !self.greeted && !matches!(request, Request::Hello { .. }) {
            return Err(PeerError::Version);
        }
        let mut balloon = self.backend.balloon();
        let answer = match request {
            Request::Hello { version: VERSION } => {
                self.greeted = true;
                Ok(Reply::Hello {
                    version: VERSION,
                    features: balloon.features(),
                })
            }
            Request::Hello { .. } => return Err(PeerError::Version),
            Request::SetHintMap { bytes } => match fds.pop() {
                Some(file) => balloon.set_hint_map(file, bytes).map(|()| Reply::Ok),
                None => return Err(PeerError::FileDescriptors(0)),
            },
            Request::Open { epoch } => balloon.open(epoch).map(|command_id| {
                self.hinted = true;
                Reply::Opened { command_id }
            }),
            Request::Close { epoch } => balloon.close(epoch).map(Reply::Closed),
            Request::Done => {
                balloon.done();
                self.hinted = false;
                Ok(Reply::Ok)
            }
            Request::Status => Ok(Reply::Status(balloon.status())),
        };
        Ok(answer.unwrap_or_else(Reply::Refused))
    }
}

fn reply(peer: &UnixStream, sequence: u32, reply: Reply) -> io::Result<()> {
    let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
    let length = reply.encode(sequence, &mut frame);
    sockets::send(peer, &frame[..length], &[])
}
