// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connects to an address, with one deadline for the name's resolution and all attempts.
//!
//! A name may have several addresses, and some of them may not answer. They are tried in parallel (RFC 8305, "happy
//! eyeballs"): the next attempt begins when the one before has failed or has not been answered for a while. The first
//! connection wins.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// How long an attempt may remain unanswered before the next address is tried, too.
const HEAD_START: Duration = Duration::from_millis(250);
/// How often connecting to a unix socket with a full queue is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// Connects to `port` of `host`, a name or an address.
///
/// # Errors
/// [`ErrorKind::TimedOut`] after `timeout`, the name's resolution included; or why no address can be reached.
pub(super) fn connect_tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + timeout;
    let addresses = resolve_until(host, port, deadline)?;
    Race::new(addresses, deadline).run()
}

/// Connects to the unix socket at `path`. While its queue of connections is full, waits for room.
///
/// # Errors
/// [`ErrorKind::TimedOut`] after `timeout`, or the connection's own error.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    loop {
        match socket.connect(&address) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    let text = "its queue of connections is full, and none is accepted";
                    return Err(io::Error::new(ErrorKind::TimedOut, text));
                }
                thread::sleep(RETRY);
            }
            Err(error) => return Err(error),
            Ok(()) => {
                socket.set_nonblocking(false)?;
                return Ok(OwnedFd::from(socket).into());
            }
        }
    }
}

/// Connects to `port` of the machine with the context id `cid`.
///
/// # Errors
/// [`ErrorKind::TimedOut`] after `timeout`, or the connection's own error.
pub(super) fn connect_vsock(cid: u32, port: u32, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::vsock(cid, port), timeout)?;
    Ok(socket.into())
}

/// All addresses of `host`, without duplicates.
pub(super) fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// As [`resolve`], but gives up at `deadline`. It resolves in a thread of its own, because a name server may take
/// longer.
fn resolve_until(host: &str, port: u16, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let (tell, told) = mpsc::channel();
    let name = host.to_owned();
    thread::Builder::new()
        .name("resolve".into())
        .spawn(move || {
            // After the deadline nobody receives the result.
            let _ = tell.send(resolve(&name, port));
        })?;
    let left = deadline.saturating_duration_since(Instant::now());
    told.recv_timeout(left).unwrap_or_else(|_| {
        let text = "the name was not resolved in time";
        Err(io::Error::new(ErrorKind::TimedOut, text))
    })
}

/// IPv4 and IPv6 addresses in turn. The family that the resolver prefers comes first.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (preferred, others): (Vec<_>, Vec<_>) =
        (addresses.into_iter()).partition(|address| address.is_ipv4() == first_is_v4);
    let mut others = others.into_iter();
    let mut turns = Vec::new();
    for address in preferred {
        turns.push(address);
        turns.extend(others.next());
    }
    turns.extend(others);
    turns
}

/// Connection attempts to several addresses. The first that succeeds wins.
struct Race {
    waiting: std::vec::IntoIter<SocketAddr>,
    running: Vec<(SocketAddr, Socket)>,
    lost: Vec<(SocketAddr, io::Error)>,
    /// When the next address is tried.
    next: Instant,
    deadline: Instant,
}

impl Race {
    fn new(addresses: Vec<SocketAddr>, deadline: Instant) -> Self {
        Self {
            waiting: interleave(addresses).into_iter(),
            running: Vec::new(),
            lost: Vec::new(),
            next: Instant::now(),
            deadline,
        }
    }

    fn run(mut self) -> io::Result<TcpStream> {
        loop {
            let now = Instant::now();
            if now >= self.deadline {
                return Err(self.timed_out());
            }
            if now >= self.next || self.running.is_empty() {
                match self.waiting.next() {
                    Some(address) => {
                        self.next = now + HEAD_START;
                        self.start(address);
                    }
                    None if self.running.is_empty() => return Err(self.failed()),
                    None => {}
                }
            }
            if let Some(winner) = self.wait()? {
                winner.set_nonblocking(false)?;
                return Ok(winner.into());
            }
        }
    }

    fn start(&mut self, address: SocketAddr) {
        match begin(address) {
            Ok(socket) => self.running.push((address, socket)),
            Err(error) => self.lost.push((address, error)),
        }
    }

    /// Waits until an attempt succeeds or fails, or until the next address is to be tried.
    fn wait(&mut self) -> io::Result<Option<Socket>> {
        if self.running.is_empty() {
            return Ok(None);
        }
        let until = match self.waiting.len() {
            0 => self.deadline,
            _ => self.deadline.min(self.next),
        };
        let left = until.saturating_duration_since(Instant::now());
        let mut polled: Vec<_> = (self.running.iter())
            .map(|(_, socket)| PollFd::new(socket, PollFlags::OUT))
            .collect();
        match poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = (polled.iter())
            .map(|polled| !polled.revents().is_empty())
            .collect();
        for ((address, socket), ready) in std::mem::take(&mut self.running).into_iter().zip(ready) {
            if !ready {
                self.running.push((address, socket));
                continue;
            }
            match socket.take_error() {
                Ok(None) => return Ok(Some(socket)),
                Ok(Some(error)) | Err(error) => {
                    self.lost.push((address, error));
                    self.next = Instant::now();
                }
            }
        }
        Ok(None)
    }

    fn timed_out(&self) -> io::Error {
        let silent = (self.running.iter()).map(|(address, _)| format!("{address} does not answer"));
        let text = silent.chain(self.reasons()).collect::<Vec<_>>().join("; ");
        io::Error::new(ErrorKind::TimedOut, text)
    }

    fn failed(mut self) -> io::Error {
        match self.lost.len() {
            0 => io::Error::new(ErrorKind::NotFound, "the name has no address"),
            1 => self.lost.remove(0).1,
            _ => {
                let text = self.reasons().collect::<Vec<_>>().join("; ");
                io::Error::new(self.lost[0].1.kind(), text)
            }
        }
    }

    fn reasons(&self) -> impl Iterator<Item = String> {
        (self.lost.iter()).map(|(address, error)| format!("{address}: {error}"))
    }
}

/// Begins to connect.
fn begin(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    /// An address that does not answer, because its queue is full. It exists as long as the sockets.
    fn silent_address() -> (SocketAddr, Socket, Vec<Socket>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let queue = (0..4).map(|_| begin(address).unwrap()).collect();
        (address, socket, queue)
    }

    #[test]
    fn one_address_that_answers_is_enough() {
        let silent: Vec<_> = (0..3).map(|_| silent_address()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let live = listener.local_addr().unwrap();
        let mut addresses: Vec<_> = silent.iter().map(|(address, ..)| *address).collect();
        addresses.push(live);
        let deadline = Instant::now() + Duration::from_secs(30);
        let stream = Race::new(addresses, deadline).run().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live);
        assert!(Instant::now() < deadline);
    }

    #[test]
    fn addresses_that_do_not_answer_are_named_when_the_time_is_over() {
        let (silent, ..) = &silent_address();
        let refusing = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(1);
        let error = Race::new(vec![refusing, *silent], deadline)
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let text = error.to_string();
        assert!(
            text.contains(&format!("{silent} does not answer")),
            "{text}"
        );
        assert!(text.contains(&format!("{refusing}: ")), "{text}");
    }

    #[test]
    fn if_all_addresses_refuse_the_error_comes_at_once() {
        let refusing = || {
            TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
        };
        // The deadline is far away, so the error is not a timeout.
        let deadline = Instant::now() + Duration::from_secs(100_000);
        let error = Race::new(vec![refusing(), refusing()], deadline)
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn families_take_turns() {
        let texts = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"];
        let turns = interleave(texts.iter().map(|text| text.parse().unwrap()).collect());
        let turns: Vec<String> = turns.iter().map(ToString::to_string).collect();
        assert_eq!(turns, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]);
    }

    #[test]
    fn a_unix_socket_with_a_full_queue_is_tried_until_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = connect_unix(&path, Duration::ZERO).unwrap();
        let error = connect_unix(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let acceptor = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            let accepted = listener.accept().unwrap();
            (listener, accepted)
        });
        connect_unix(&path, Duration::from_secs(60)).unwrap();
        acceptor.join().unwrap();
        drop(first);
    }
}
