// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A proxy between source and destination that can cut, record and damage the stream.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use spec::stream::{
    GREETING_BYTES, SECTION_HEADER_BYTES, STREAM_HEADER_BYTES, SectionHeader, SectionKind,
};

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fault {
    /// The connection is cut in both directions after this many bytes.
    pub cut_after: Option<usize>,
    /// This byte gets one bit flipped.
    pub flip: Option<usize>,
    /// Nothing more is forwarded after this many bytes, but the connection stays open.
    pub stall_after: Option<usize>,
    /// The bytes arrive one by one, with this pause before each.
    pub trickle: Option<Duration>,
    /// Only the destination's greeting and this many answers (heartbeats not counted) are forwarded.
    pub answers: Option<usize>,
}

/// A wire that carries bytes until one of its ends is closed.
pub struct Wire {
    threads: Vec<JoinHandle<()>>,
    /// What the source has sent.
    pub from_source: Arc<Mutex<Vec<u8>>>,
    /// What the destination has sent.
    pub from_destination: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    /// Makes a wire and its two ends: the source's and the destination's.
    pub fn new(from_source: Fault, from_destination: Fault) -> (Self, UnixStream, UnixStream) {
        let (source, here) = UnixStream::pair().unwrap();
        let (there, destination) = UnixStream::pair().unwrap();
        let wire = Self {
            from_source: Arc::default(),
            from_destination: Arc::default(),
            threads: Vec::new(),
        };
        let forth = pump(&here, &there, from_source, &wire.from_source);
        let back = pump(&there, &here, from_destination, &wire.from_destination);
        let threads = vec![forth, back];
        (Self { threads, ..wire }, source, destination)
    }

    /// Waits until both directions have ended.
    pub fn join(self) -> (Vec<u8>, Vec<u8>) {
        for thread in self.threads {
            thread.join().unwrap();
        }
        let take = |bytes: &Mutex<Vec<u8>>| std::mem::take(&mut *bytes.lock().unwrap());
        (take(&self.from_source), take(&self.from_destination))
    }
}

fn pump(
    from: &UnixStream,
    to: &UnixStream,
    fault: Fault,
    tap: &Arc<Mutex<Vec<u8>>>,
) -> JoinHandle<()> {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let tap = Arc::clone(tap);
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0;
        let fault = match fault.answers {
            None => fault,
            Some(answers) => {
                done = pass_answers(&mut from, &mut to, answers).unwrap_or(0);
                Fault {
                    stall_after: Some(done),
                    ..fault
                }
            }
        };
        loop {
            let stall = fault.stall_after.map_or(usize::MAX, |at| at - done);
            if stall == 0 {
                // Reads nothing until an end is closed.
                while !closed(&to) && !closed(&from) {
                    thread::sleep(std::time::Duration::from_millis(1));
                }
                break;
            }
            let cut = fault.cut_after.map_or(usize::MAX, |at| at - done);
            let piece = match fault.trickle {
                Some(pause) => {
                    thread::sleep(pause);
                    1
                }
                None => buffer.len(),
            };
            let limit = piece.min(cut).min(stall);
            let count = if limit == 0 {
                0
            } else {
                from.read(&mut buffer[..limit]).unwrap_or(0)
            };
            if count == 0 {
                break;
            }
            if let Some(at) = fault.flip.filter(|at| (done..done + count).contains(at)) {
                buffer[at - done] ^= 1 << (at % 8);
            }
            done += count;
            tap.lock().unwrap().extend(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        if fault.cut_after == Some(done) {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        } else {
            // Bytes sent before the end arrive before the end.
            let _ = to.shutdown(Shutdown::Write);
        }
    })
}

/// A channel on which `sees` gets the header and the payload of each section from the source before it is forwarded.
pub fn watched(sees: impl Fn(&SectionHeader, &[u8]) + Send + 'static) -> (UnixStream, UnixStream) {
    let (source, mut from) = UnixStream::pair().unwrap();
    let (mut to, destination) = UnixStream::pair().unwrap();
    let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
    thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
    thread::spawn(move || {
        let _ = forward(&mut from, &mut to, sees);
        let _ = to.shutdown(Shutdown::Write);
    });
    (source, destination)
}

/// Forwards a channel's header and then its sections.
fn forward(
    from: &mut UnixStream,
    to: &mut UnixStream,
    sees: impl Fn(&SectionHeader, &[u8]),
) -> std::io::Result<()> {
    let mut introduction = [0; STREAM_HEADER_BYTES];
    from.read_exact(&mut introduction)?;
    to.write_all(&introduction)?;
    loop {
        let mut header = [0; SECTION_HEADER_BYTES];
        from.read_exact(&mut header)?;
        let section = SectionHeader::from_bytes(&header).unwrap();
        let mut payload = vec![0; section.length as usize];
        from.read_exact(&mut payload)?;
        sees(&section, &payload);
        to.write_all(&header)?;
        to.write_all(&payload)?;
    }
}

/// Forwards the destination's greeting and then its sections, up to the last of `answers`. Returns their bytes.
fn pass_answers(
    from: &mut UnixStream,
    to: &mut UnixStream,
    mut answers: usize,
) -> std::io::Result<usize> {
    let mut bytes = vec![0; GREETING_BYTES];
    from.read_exact(&mut bytes)?;
    to.write_all(&bytes)?;
    let mut done = bytes.len();
    while answers > 0 {
        let mut header = [0; SECTION_HEADER_BYTES];
        from.read_exact(&mut header)?;
        let section = SectionHeader::from_bytes(&header).unwrap();
        let mut payload = vec![0; section.length as usize];
        from.read_exact(&mut payload)?;
        to.write_all(&header)?;
        to.write_all(&payload)?;
        done += header.len() + payload.len();
        answers -= usize::from(section.kind != SectionKind::Heartbeat);
    }
    Ok(done)
}

fn closed(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).unwrap() > 0
}
