// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connected stream whose every wait has an end: data, a closed socket, a stop from another thread, or
//! a peer that has been silent for too long.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::{Address, TransportError};

/// How often a blocked read or write looks whether it has been stopped.
const TICK: Duration = Duration::from_millis(20);
/// Socket buffers: a few sections, so that neither side waits for the other's every wake-up. The kernel
/// may grant less.
const SOCKET_BUFFER: usize = 4 << 20;
/// How long a peer may be silent, unless the operator says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection between source and destination.
#[derive(Debug)]
pub struct Channel {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
    patience: Duration,
}

impl Channel {
    /// Connects to `address`.
    ///
    /// # Errors
    /// [`TransportError`] if nobody answers there within `timeout`.
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, TransportError> {
        let connected = match address {
            Address::Tcp { host, port } => connect_tcp(host, *port, timeout),
            Address::Unix(path) => connect_unix(path, timeout),
        };
        connected.map_err(|source| TransportError {
            action: "connect to",
            address: address.clone(),
            source,
        })
    }

    /// A handle that ends the connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer {
            socket: Arc::clone(&self.socket),
            stop: self.stop.clone(),
        }
    }

    /// Sets how long the peer may neither take nor give a byte that is waited for.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Raised by another thread, it ends all waits of this channel.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }

    /// The two directions.
    pub(crate) fn split(self) -> (Reader, Writer) {
        let reader = Reader {
            socket: Arc::clone(&self.socket),
            stop: self.stop.clone(),
            patience: self.patience,
        };
        let writer = Writer {
            socket: self.socket,
            stop: self.stop,
            patience: self.patience,
        };
        (reader, writer)
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        // Larger buffers are welcome, not needed.
        let _ = options.set_send_buffer_size(SOCKET_BUFFER);
        let _ = options.set_recv_buffer_size(SOCKET_BUFFER);
        options.set_read_timeout(Some(TICK))?;
        options.set_write_timeout(Some(TICK))?;
        Ok(Self {
            socket: Arc::new(socket),
            stop: StopFlag::default(),
            patience: PATIENCE,
        })
    }
}

impl TryFrom<TcpStream> for Channel {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // Finds a peer whose machine has gone within 25 seconds, also while nothing is to be sent.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Self::new(stream.into())
    }
}

impl TryFrom<UnixStream> for Channel {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        Self::new(stream.into())
    }
}

fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<Channel> {
    let mut error = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Channel::try_from(stream),
            Err(failure) => error = failure,
        }
    }
    Err(error)
}

fn connect_unix(path: &Path, timeout: Duration) -> io::Result<Channel> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, timeout)?;
    Channel::new(socket.into())
}

/// Ends a [`Channel`] from another thread.
#[derive(Clone, Debug)]
pub struct Closer {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
}

impl Closer {
    /// Closes the connection both ways; the peer sees its end.
    pub fn close(&self) {
        self.stop.raise();
        // A socket that is closed already cannot be shut down, and need not be.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// Ends the waits of a channel from another thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The receiving direction.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
    patience: Duration,
}

impl Reader {
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Fills `bytes`.
    pub(crate) fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let wait = Wait::new(&self.stop, self.patience);
            match wait.until_ready(|| {
                Ok(recv(&*self.socket, &mut bytes[filled..], RecvFlags::empty())?.0)
            })? {
                0 => return Err(hung_up()),
                count => filled += count,
            }
        }
        Ok(())
    }

    /// Whether the peer has sent something, or hung up. Does not wait.
    pub(crate) fn is_ready(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            recv(&*self.socket, &mut [0], flags),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)
        )
    }

    /// Reads what still comes, up to the peer's end or for a short time, and forgets it: a socket that is
    /// closed with unread data takes back what it sent.
    pub(crate) fn drain(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut bytes = vec![0; 64 << 10];
        while Instant::now() < end && !self.stop.is_raised() {
            match recv(&*self.socket, &mut bytes[..], RecvFlags::empty()) {
                Ok((_, 0)) => return,
                Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// The sending direction.
#[derive(Debug)]
pub(crate) struct Writer {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
    patience: Duration,
}

/// A write that failed after the kernel had taken `written` bytes.
#[derive(Debug)]
pub(crate) struct WriteError {
    pub(crate) written: usize,
    pub(crate) source: io::Error,
}

impl Writer {
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Writes all `parts`, in few calls.
    pub(crate) fn write_all(&mut self, mut parts: &mut [IoSlice<'_>]) -> Result<(), WriteError> {
        let mut written = 0;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let wait = Wait::new(&self.stop, self.patience);
            let count = wait
                .until_ready(|| {
                    let mut no_fds = SendAncillaryBuffer::default();
                    let flags = SendFlags::NOSIGNAL;
                    Ok(sendmsg(&*self.socket, parts, &mut no_fds, flags)?)
                })
                .map_err(|source| WriteError { written, source })?;
            written += count;
            IoSlice::advance_slices(&mut parts, count);
        }
        Ok(())
    }

    /// No more is sent; the peer sees the end after what was sent.
    pub(crate) fn finish(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Write);
    }
}

/// One wait for a socket, whose calls return after at most [`TICK`].
struct Wait<'a> {
    stop: &'a StopFlag,
    patience: Duration,
    started: Option<Instant>,
}

impl<'a> Wait<'a> {
    fn new(stop: &'a StopFlag, patience: Duration) -> Self {
        Self {
            stop,
            patience,
            started: None,
        }
    }

    fn until_ready(mut self, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        loop {
            let begin = Instant::now();
            match call() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let started = *self.started.get_or_insert(begin);
                    if started.elapsed() >= self.patience {
                        let text = format!("the other side was silent for {:?}", self.patience);
                        return Err(io::Error::new(ErrorKind::TimedOut, text));
                    }
                }
                result => return result,
            }
            if self.stop.is_raised() {
                return Err(io::Error::new(ErrorKind::ConnectionAborted, "stopped"));
            }
        }
    }
}

fn hung_up() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the other side has hung up")
}
