// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A link that is slow, long, or interrupted for a while. It loses nothing.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::machine::SoftMachine;

/// The properties of one direction of a link.
#[derive(Clone, Default)]
pub struct Link {
    /// Bytes a second; `None` for no limit.
    pub rate: Option<u64>,
    /// The delay of each byte.
    pub delay: Duration,
    /// After so many bytes, nothing moves for so long.
    pub outage: Option<(usize, Duration)>,
    /// Bytes a second while this machine is stopped.
    pub collapse: Option<(Arc<SoftMachine>, u64)>,
}

impl Link {
    /// Bytes a second now.
    fn rate(&self) -> Option<u64> {
        match &self.collapse {
            Some((machine, rate)) if machine.is_stopped() => Some(*rate),
            _ => self.rate,
        }
    }
}

/// The most bytes in flight.
const CHUNKS_ON_THE_WAY: usize = 1024;
const CHUNK: usize = 16 << 10;

/// A link with the directions `forth` and `back`. Returns the source's end and the destination's.
pub fn wire(forth: Link, back: Link) -> (UnixStream, UnixStream) {
    let (source, here) = UnixStream::pair().unwrap();
    let (there, destination) = UnixStream::pair().unwrap();
    carry(&here, &there, forth);
    carry(&there, &here, back);
    (source, destination)
}

fn carry(from: &UnixStream, to: &UnixStream, link: Link) {
    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let (put, take) = sync_channel(CHUNKS_ON_THE_WAY);
    thread::spawn(move || put_in(from, link, &put));
    thread::spawn(move || take_out(to, &take));
}

/// Bytes, and when they are due at the other end.
type OnTheWay = (Instant, Vec<u8>);

fn put_in(mut from: UnixStream, link: Link, put: &SyncSender<OnTheWay>) {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        // A slow link carries small pieces.
        let piece = link
            .rate()
            .map_or(CHUNK, |rate| (rate / 32).max(1) as usize);
        let Ok(count @ 1..) = from.read(&mut buffer[..piece.min(CHUNK)]) else {
            return;
        };
        if let Some(rate) = link.rate() {
            thread::sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        done += count;
        if let Some((after, outage)) = link.outage
            && (done - count..done).contains(&after)
        {
            thread::sleep(outage);
        }
        if put
            .send((Instant::now() + link.delay, buffer[..count].to_vec()))
            .is_err()
        {
            return;
        }
    }
}

fn take_out(mut to: UnixStream, take: &Receiver<OnTheWay>) {
    for (due, bytes) in take {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
    // The other side sees the end after everything that was sent before it.
    let _ = to.shutdown(Shutdown::Write);
}
