// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection whose every wait ends: with data, a closed socket, a stop by another thread, a peer that has been
//! silent for too long, or a deadline.
//!
//! A silent peer neither takes nor gives a byte. The kernel chooses the sizes of the socket's buffers: it never tunes a
//! size that a program has set, and a long link would then carry only a part of what it can.

use std::io::{self, ErrorKind, IoSlice};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_domain;
use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use socket2::{SockRef, TcpKeepalive};
use spec_sockets::inherited;

use super::address::Address;
use super::dial;
use super::error::TransportError;
use super::stop::StopFlag;

/// How often a blocked read or write checks whether another thread has stopped it.
const TICK: Duration = Duration::from_millis(20);
/// After so many patiences the kernel gives up a peer that acknowledges nothing. More than one, because the kernel also
/// counts the time in which a slow peer acknowledges everything but has no room. This side does not count that time.
const KERNEL_PATIENCES: u32 = 4;
/// How long a peer may be silent, unless the operator says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection between source and destination.
#[derive(Debug)]
pub struct Connection {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) stop: StopFlag,
    pub(super) patience: Duration,
    /// The unix socket that was connected to, as this process names it.
    pub(super) path: Option<PathBuf>,
    /// Connections to the same peer that are there already.
    pub(super) more: Vec<Connection>,
}

impl Connection {
    /// Connects to `address`. All addresses of a name are tried in parallel.
    ///
    /// # Errors
    /// [`TransportError`] if none answers within `timeout`, the name's resolution included.
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, TransportError> {
        let connected = match address {
            Address::Tcp { host, port } => {
                dial::connect_tcp(host, *port, timeout).and_then(Self::try_from)
            }
            Address::Unix(path) => dial::connect_unix(path, timeout)
                .and_then(Self::try_from)
                .map(|connected| Self {
                    path: Some(path.clone()),
                    ..connected
                }),
            Address::Vsock { cid, port } => {
                dial::connect_vsock(*cid, *port, timeout).and_then(Self::try_from)
            }
            Address::Fd(numbers) => Self::given(numbers),
        };
        connected.map_err(|source| TransportError {
            action: "connect to",
            address: address.clone(),
            source,
        })
    }

    /// Gives this connection `more` to the same peer, for a migration over several channels. Needed only where the peer cannot
    /// be connected to again, as with sockets that another process has made.
    #[must_use]
    pub fn with_more(mut self, more: impl IntoIterator<Item = Self>) -> Self {
        self.more.extend(more);
        self
    }

    /// A handle that ends the connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer {
            socket: Arc::clone(&self.socket),
            stop: self.stop.clone(),
        }
    }

    /// Sets how long the peer may be silent while this side waits for it.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        set_kernel_patience(&self.socket, patience);
        self
    }

    /// From now on `stop` ends the waits of this connection, as those of others.
    #[must_use]
    pub(crate) fn with_stop(self, stop: StopFlag) -> Self {
        Self { stop, ..self }
    }

    /// Another thread can raise this flag to end all waits of this connection.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }

    /// The two directions.
    pub(crate) fn split(self) -> (Reader, Writer) {
        let reader = Reader {
            socket: Arc::clone(&self.socket),
            stop: self.stop.clone(),
            patience: self.patience,
            heard: Instant::now(),
        };
        let writer = Writer {
            socket: self.socket,
            stop: self.stop,
            patience: self.patience,
        };
        (reader, writer)
    }

    /// Of sockets that this process was started with, the first is the connection.
    fn given(numbers: &[u32]) -> io::Result<Self> {
        let mut connections = (numbers.iter())
            .map(|number| inherited::stream_socket(*number).and_then(Self::try_from))
            .collect::<io::Result<Vec<_>>>()?
            .into_iter();
        let first = connections.next().ok_or(ErrorKind::InvalidInput)?;
        Ok(first.with_more(connections))
    }

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let options = SockRef::from(&socket);
        options.set_read_timeout(Some(TICK))?;
        options.set_write_timeout(Some(TICK))?;
        set_kernel_patience(&socket, PATIENCE);
        Ok(Self {
            socket: Arc::new(socket),
            stop: StopFlag::default(),
            patience: PATIENCE,
            path: None,
            more: Vec::new(),
        })
    }
}

impl TryFrom<TcpStream> for Connection {
    type Error = io::Error;

    fn try_from(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // Detects within 25 seconds that the peer's machine has gone, even if nothing has to be sent.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(10))
            .with_interval(Duration::from_secs(5))
            .with_retries(3);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Self::new(stream.into())
    }
}

impl TryFrom<UnixStream> for Connection {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        Self::new(stream.into())
    }
}

/// A stream socket of any kind that is connected.
impl TryFrom<OwnedFd> for Connection {
    type Error = io::Error;

    fn try_from(socket: OwnedFd) -> io::Result<Self> {
        // Of a socket that is not connected this is an error.
        SockRef::from(&socket).peer_addr()?;
        match socket_domain(&socket)? {
            AddressFamily::INET | AddressFamily::INET6 => TcpStream::from(socket).try_into(),
            _ => Self::new(socket),
        }
    }
}

/// Ends a [`Connection`] from another thread.
#[derive(Clone, Debug)]
pub struct Closer {
    socket: Arc<OwnedFd>,
    stop: StopFlag,
}

impl Closer {
    /// Closes the connection both ways; the peer sees its end.
    pub fn close(&self) {
        self.stop.raise();
        self.shut();
    }

    /// As [`Closer::close`], for one of several connections that are stopped together: the others go on.
    pub(crate) fn shut(&self) {
        // Shutting down a socket that is already closed fails, and does not matter.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// The receiving direction.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) stop: StopFlag,
    pub(super) patience: Duration,
    /// When the peer's last byte was read.
    pub(super) heard: Instant,
}

impl Reader {
    pub(crate) fn set_stop(&mut self, stop: StopFlag) {
        self.stop = stop;
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// An error if the peer has sent no byte for longer than the patience. For use when nothing is there to be read.
    pub(crate) fn check_heard(&self) -> io::Result<()> {
        if self.heard.elapsed() < self.patience {
            Ok(())
        } else {
            Err(silent(self.patience))
        }
    }

    /// Fills `bytes`.
    pub(crate) fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            let wait = Wait::new(&self.socket, &self.stop, self.patience);
            match wait.until_ready(|| {
                Ok(recv(&*self.socket, &mut bytes[filled..], RecvFlags::empty())?.0)
            })? {
                0 => return Err(hung_up()),
                count => filled += count,
            }
            self.heard = Instant::now();
        }
        Ok(())
    }

    /// Whether the peer has sent something or hung up. Does not wait.
    pub(crate) fn is_ready(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(
            recv(&*self.socket, &mut [0], flags),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)
        )
    }

    /// Reads and discards what has arrived. Does not wait.
    pub(crate) fn forget_received(&mut self) {
        let mut bytes = [0; 4096];
        // Bounded, because a peer may flood this side.
        for _ in 0..1024 {
            if !matches!(
                recv(&*self.socket, &mut bytes, RecvFlags::DONTWAIT),
                Ok((_, 1..))
            ) {
                return;
            }
        }
    }

    /// Reads and discards what still arrives, up to the peer's end or for a short time. If a socket is closed with
    /// unread data, the kernel discards what it has still to send.
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
    pub(super) socket: Arc<OwnedFd>,
    pub(super) stop: StopFlag,
    pub(super) patience: Duration,
}

/// A write that failed after the kernel had taken `written` bytes.
#[derive(Debug)]
pub(crate) struct WriteError {
    pub(crate) written: usize,
    pub(crate) source: io::Error,
}

impl Writer {
    pub(crate) fn set_stop(&mut self, stop: StopFlag) {
        self.stop = stop;
    }

    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Writes all `parts` in few system calls.
    pub(crate) fn write_all(&mut self, mut parts: &mut [IoSlice<'_>]) -> Result<(), WriteError> {
        let mut written = 0;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            let wait = Wait::new(&self.socket, &self.stop, self.patience);
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

    /// Writes as much of `bytes` as the kernel takes at once. Returns how much: 0 also if the connection has failed.
    /// The next [`Writer::write_all`] reports that.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> usize {
        let mut no_fds = SendAncillaryBuffer::default();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&*self.socket, &[IoSlice::new(bytes)], &mut no_fds, flags).unwrap_or(0)
    }

    /// Ends the sending direction. The peer sees the end after all that was sent.
    pub(crate) fn finish(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Write);
    }
}

/// One wait for a socket. Its system calls return after at most [`TICK`].
pub(super) struct Wait<'a> {
    socket: &'a OwnedFd,
    stop: &'a StopFlag,
    patience: Duration,
    /// Since when the peer has been silent, and how many of its bytes were unread then.
    silence: Option<(Instant, u64)>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(socket: &'a OwnedFd, stop: &'a StopFlag, patience: Duration) -> Self {
        Self {
            socket,
            stop,
            patience,
            silence: None,
        }
    }

    pub(super) fn until_ready(
        mut self,
        mut call: impl FnMut() -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            self.stop.check_deadline()?;
            let begin = Instant::now();
            match call() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.silence_since(begin).elapsed() >= self.patience {
                        return Err(silent(self.patience));
                    }
                }
                result => return result,
            }
            self.stop.check()?;
        }
    }

    /// Since when nothing has arrived from the peer: one that takes nothing may still send heartbeats. The call that
    /// began at `begin` moved no byte.
    fn silence_since(&mut self, begin: Instant) -> Instant {
        // If the socket cannot say what is unread, it has failed. The next call reports that.
        let unread = rustix::io::ioctl_fionread(self.socket).unwrap_or(0);
        match self.silence {
            Some((since, before)) if before == unread => since,
            known => {
                let since = known.map_or(begin, |_| Instant::now());
                self.silence = Some((since, unread));
                since
            }
        }
    }
}

fn silent(patience: Duration) -> io::Error {
    let text = format!("the other side was silent for {patience:?}");
    io::Error::new(ErrorKind::TimedOut, text)
}

/// Has the kernel give up a TCP peer that acknowledges nothing. Other kinds of sockets do not support this.
fn set_kernel_patience(socket: &OwnedFd, patience: Duration) {
    let patience = patience.saturating_mul(KERNEL_PATIENCES);
    // The kernel takes milliseconds as a signed 32-bit number. A longer time becomes no limit.
    let limit = (patience.as_millis() <= i32::MAX as u128).then_some(patience);
    let _ = SockRef::from(socket).set_tcp_user_timeout(limit);
}

pub(super) fn hung_up() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the other side has hung up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A TCP connection and the peer's bare socket.
    fn tcp() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        (near.try_into().unwrap(), far)
    }

    #[test]
    fn the_kernel_chooses_the_sizes_of_the_buffers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bare = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, _far) = tcp();
        let (ours, bare) = (SockRef::from(&connection.socket), SockRef::from(&bare));
        let sizes = |socket: &SockRef<'_>| {
            let send = socket.send_buffer_size().unwrap();
            (send, socket.recv_buffer_size().unwrap())
        };
        assert_eq!(sizes(&ours), sizes(&bare));
    }

    #[test]
    fn the_kernel_detects_a_tcp_peer_that_has_gone() {
        let (connection, _far) = tcp();
        let connection = connection.with_patience(Duration::from_secs(20));
        let socket = SockRef::from(&connection.socket);
        assert!(socket.keepalive().unwrap());
        let given_up = socket.tcp_user_timeout().unwrap();
        assert_eq!(given_up, Some(Duration::from_secs(80)));
    }

    #[test]
    fn a_peer_that_takes_nothing_but_sends_is_not_silent() {
        let (connection, far) = tcp();
        let (_, mut writer) = connection.with_patience(Duration::from_millis(500)).split();
        let speaker = std::thread::spawn(move || {
            use std::io::Write;
            for _ in 0..30 {
                (&far).write_all(b"!").unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
            (Instant::now(), far)
        });
        let bytes = vec![0; 64 << 20];
        let error = writer.write_all(&mut [IoSlice::new(&bytes)]).unwrap_err();
        let gave_up = Instant::now();
        assert_eq!(error.source.kind(), ErrorKind::TimedOut);
        // Keeps the far end open until here.
        let (fell_silent, _far) = speaker.join().unwrap();
        assert!(gave_up > fell_silent);
    }
}
