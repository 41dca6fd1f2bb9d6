// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! As much of HTTP/1.1 as a scrape needs, over a unix socket: one request for each connection, of bounded size and in
//! bounded time.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rustix::event::{PollFd, PollFlags};

use crate::sandbox::seccomp::Group;
use crate::sockets::{self, ACCEPT_PAUSE, BoundSocket};
use crate::threads::ServerThread;
use crate::threads::server::StopEvent;

/// The most bytes of a request.
const MAX_REQUEST: usize = 8192;
/// A connection that takes longer than this is hung up on, because others wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// The format of the answer.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves metrics in a thread of its own until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    _thread: ServerThread,
}

impl MetricsServer {
    /// Serves the metrics of `registry` to all clients of `listener`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(listener: BoundSocket, registry: Registry) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let run = move |stop| run(&listener, &registry, &stop);
        Ok(Self {
            _thread: ServerThread::start(Group::Metrics, run)?,
        })
    }
}

fn run(listener: &BoundSocket, registry: &Registry, stop: &StopEvent) {
    while let Ok([false, _]) = sockets::wait([stop.as_fd(), listener.as_fd()], None) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = serve(&stream, registry) {
                    log::debug!("metrics socket: {error}");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                log::warn!("metrics socket: {error}");
                if sockets::wait([stop.as_fd()], Some(Instant::now() + ACCEPT_PAUSE)).is_ok() {
                    return;
                }
            }
        }
    }
}

fn serve(stream: &UnixStream, registry: &Registry) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    let answer = match request(stream, deadline)? {
        Some(head) => answer(&head, registry),
        None => response(
            "431 Request Header Fields Too Large",
            "text/plain",
            "",
            true,
        ),
    };
    let mut left = answer.as_bytes();
    while !left.is_empty() {
        let mut polled = [PollFd::new(stream, PollFlags::OUT)];
        sockets::wait_for(&mut polled, Some(deadline))?;
        match sockets::send_some(stream, left, &[]) {
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The head of a request, up to the empty line; `None` if it is too long.
fn request(stream: &UnixStream, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    loop {
        sockets::wait([stream.as_fd()], Some(deadline))?;
        let mut stream = stream;
        match stream.read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => head.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if head.windows(4).any(|window| window == b"\r\n\r\n") {
            return Ok(Some(head));
        }
        if head.len() > MAX_REQUEST {
            return Ok(None);
        }
    }
}

fn answer(head: &[u8], registry: &Registry) -> String {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else {
        return response("400 Bad Request", "text/plain", "", true);
    };
    if !version.starts_with("HTTP/1.") {
        return response("505 HTTP Version Not Supported", "text/plain", "", true);
    }
    if method != "GET" && method != "HEAD" {
        return response(
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            "text/plain",
            "",
            true,
        );
    }
    let whole = method == "GET";
    if target.split('?').next() != Some("/metrics") {
        return response(
            "404 Not Found",
            "text/plain",
            "metrics are at /metrics\n",
            whole,
        );
    }
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => response("200 OK", CONTENT_TYPE, &text, whole),
        Err(error) => {
            let text = format!("{error}\n");
            response("500 Internal Server Error", "text/plain", &text, whole)
        }
    }
}

/// A response, with its `body` if it is `whole`.
fn response(status: &str, kind: &str, body: &str, whole: bool) -> String {
    let length = body.len();
    let body = if whole { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str) -> String {
        let answer = answer(head.as_bytes(), &Registry::default());
        answer.lines().next().unwrap_or_default().into()
    }

    #[test]
    fn only_a_scrape_is_answered_with_metrics() {
        for (head, expected) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", "200 OK"),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200 OK"),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
            ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            (
                "GET /metrics HTTP/2\r\n\r\n",
                "505 HTTP Version Not Supported",
            ),
            ("GET /metrics\r\n\r\n", "400 Bad Request"),
            ("\r\n\r\n", "400 Bad Request"),
        ] {
            assert_eq!(status(head), format!("HTTP/1.1 {expected}"), "{head:?}");
        }
    }
}
