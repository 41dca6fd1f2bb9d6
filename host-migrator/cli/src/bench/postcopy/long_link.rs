// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A link on which bytes take their time, and on which each connection has only so many bytes on their way.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are taken at once.
const CHUNK: usize = 64 << 10;

/// What a link is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// How long a byte takes, each way.
    pub(super) delay: Duration,
    /// Bytes of one connection that may be on their way, until the other end's word that they are there has come back.
    pub(super) window: usize,
}

/// Opens `link` to `to`, for so many connections. Returns where it begins.
pub(super) fn open(link: Link, to: SocketAddr, connections: usize) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let accept = move || {
        for near in listener.incoming().take(connections) {
            if near.and_then(|near| join(link, near, to)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new()
        .name("long-link".into())
        .spawn(accept)?;
    Ok(address)
}

/// Passes on what comes from `near`, and what comes back.
fn join(link: Link, near: TcpStream, to: SocketAddr) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
    }
    one_way(link, near.try_clone()?, far.try_clone()?)?;
    one_way(link, far, near)
}

/// Passes on what comes from `from`, until either end has gone.
fn one_way(link: Link, mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let (under_way, arriving) = mpsc::channel::<(Instant, Vec<u8>)>();
    let take = move || {
        // When it is known here that bytes have arrived, and how many these are.
        let mut unconfirmed: VecDeque<(Instant, usize)> = VecDeque::new();
        let mut count = 0;
        let mut chunk = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut chunk) {
            let now = Instant::now();
            unconfirmed.push_back((now + 2 * link.delay, read));
            count += read;
            if under_way
                .send((now + link.delay, chunk[..read].to_vec()))
                .is_err()
            {
                break;
            }
            while let Some((at, bytes)) = unconfirmed.front().copied() {
                let wait = at.saturating_duration_since(Instant::now());
                if !wait.is_zero() && count < link.window {
                    break;
                }
                thread::sleep(wait);
                unconfirmed.pop_front();
                count -= bytes;
            }
        }
    };
    let deliver = move || {
        for (at, bytes) in arriving {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // The other end may have gone already.
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::Builder::new().name("link-in".into()).spawn(take)?;
    thread::Builder::new()
        .name("link-out".into())
        .spawn(deliver)?;
    Ok(())
}
