// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Wires between a source and a destination that do not carry everything.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use spec::stream::{
    GREETING_BYTES, SECTION_HEADER_BYTES, STREAM_HEADER_BYTES, SectionHeader, SectionKind,
};

/// What happens on a wire.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection is cut after so many bytes of the section.
    Cut(usize),
    /// Nothing passes in this direction for so long.
    Stall(Duration),
    /// Nothing passes in this direction any more, and somebody is told.
    StallForEver(&'static Sender<()>),
}

impl Fault {
    /// Lets nothing pass for as long as the fault lasts.
    pub fn stall(self) {
        match self {
            Self::Cut(_) => {}
            Self::Stall(time) => thread::sleep(time),
            Self::StallForEver(told) => {
                // The test may be over.
                let _ = told.send(());
                loop {
                    thread::park();
                }
            }
        }
    }
}

/// A wire to `destination` that has `fault` at the first section of `kind`. Returns where it begins.
pub fn faulty(destination: &str, kind: SectionKind, fault: Fault) -> String {
    let (uri, _) = wire(destination, move |near, far| {
        let forth = carry(&near, &far, STREAM_HEADER_BYTES, kind, fault);
        let back = carry(&far, &near, GREETING_BYTES, kind, fault);
        forth.join().unwrap();
        back.join().unwrap();
    });
    uri
}

/// As [`faulty`], where the fault is on the first connection and others follow, which are carried whole.
pub fn faulty_first(destination: &str, kind: SectionKind, fault: Fault) -> String {
    each_connection(destination, move |number, near, far| {
        if number == 0 {
            carry(&near, &far, STREAM_HEADER_BYTES, kind, fault);
            carry(&far, &near, GREETING_BYTES, kind, fault);
        } else {
            carry_back(&near, &far);
            thread::spawn(move || {
                let _ = io::copy(&mut &near, &mut &far);
                let _ = far.shutdown(Shutdown::Both);
            });
        }
    })
}

/// A wire to `destination` on which nothing passes any more from the first section of `kind` on. Returns where it begins, and what hears of
/// that.
pub fn stalled_for_ever(destination: &str, kind: SectionKind) -> (String, Receiver<()>) {
    let (told, is_stalled) = channel();
    let told: &'static Sender<()> = Box::leak(Box::new(told));
    (
        faulty(destination, kind, Fault::StallForEver(told)),
        is_stalled,
    )
}

/// A wire to `destination` that is cut after the source's first `limit` bytes. Returns where it begins.
pub fn cut_after(destination: &str, limit: usize) -> String {
    let (uri, _) = wire(destination, move |near, far| {
        carry_back(&near, &far);
        let _ = io::copy(&mut (&near).take(limit as u64), &mut &far);
        let _ = near.shutdown(Shutdown::Both);
        let _ = far.shutdown(Shutdown::Both);
    });
    uri
}

/// A wire to `destination` whose second connection, a channel, is cut after the source's first `limit` bytes. Returns where it
/// begins.
pub fn cut_channel_after(destination: &str, limit: usize) -> String {
    each_connection(destination, move |number, near, far| {
        carry_back(&near, &far);
        let limit = if number == 1 { limit as u64 } else { u64::MAX };
        thread::spawn(move || {
            let _ = io::copy(&mut (&near).take(limit), &mut &far);
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        });
    })
}

/// A wire to `destination` that takes many connections. `join` gets the number of each, and its two sockets. Returns where it begins.
fn each_connection(
    destination: &str,
    join: impl Fn(usize, TcpStream, TcpStream) + Send + 'static,
) -> String {
    let address = destination.strip_prefix("tcp:").expect("TCP").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for (number, near) in listener.incoming().enumerate() {
            // The destination listens no more when its guest has arrived or it has ended.
            let (near, Ok(far)) = (near.unwrap(), TcpStream::connect(&address)) else {
                return;
            };
            join(number, near, far);
        }
    });
    uri
}

/// A wire that carries the greeting and the answer to the layout, and then nothing more from the source.
pub struct Stuck {
    /// Where it begins.
    pub uri: String,
    over: Sender<()>,
    thread: JoinHandle<()>,
}

impl Stuck {
    /// Such a wire to `destination`.
    pub fn new(destination: &str) -> Self {
        let (over, is_over) = channel();
        let (uri, thread) = wire(destination, move |mut near, mut far| {
            carry_back(&near, &far);
            let mut first = vec![0; 4096];
            let read = near.read(&mut first).unwrap();
            far.write_all(&first[..read]).unwrap();
            // Both connections stay until the other end of the channel is dropped.
            let _ = is_over.recv();
        });
        Self { uri, over, thread }
    }

    /// Takes the wire away.
    ///
    /// # Panics
    /// If it carried nothing.
    pub fn end(self) {
        drop(self.over);
        self.thread.join().expect("the wire was used");
    }
}

/// A wire to `destination`, on which `carry` has the source's connection and that to the destination.
fn wire(
    destination: &str,
    carry: impl FnOnce(TcpStream, TcpStream) + Send + 'static,
) -> (String, JoinHandle<()>) {
    let address = destination.strip_prefix("tcp:").expect("TCP").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap());
    let thread = thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        carry(near, TcpStream::connect(address).unwrap());
    });
    (uri, thread)
}

/// Carries all that the destination says to the source.
fn carry_back(near: &TcpStream, far: &TcpStream) {
    let (mut from, mut to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
    thread::spawn(move || io::copy(&mut from, &mut to));
}

/// Carries what begins with `start` bytes and goes on in sections.
fn carry(
    from: &TcpStream,
    to: &TcpStream,
    start: usize,
    kind: SectionKind,
    fault: Fault,
) -> JoinHandle<()> {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    thread::spawn(move || {
        let ended = carry_sections(&mut from, &mut to, start, kind, fault);
        // What was sent before the end arrives before the end.
        let how = if ended.is_some() {
            Shutdown::Both
        } else {
            Shutdown::Write
        };
        let _ = to.shutdown(how);
        let _ = from.shutdown(Shutdown::Read);
    })
}

/// `Some` if it was cut.
fn carry_sections(
    from: &mut TcpStream,
    to: &mut TcpStream,
    start: usize,
    kind: SectionKind,
    fault: Fault,
) -> Option<()> {
    let mut bytes = vec![0; start];
    let mut hit = false;
    loop {
        if from.read_exact(&mut bytes).is_err() || to.write_all(&bytes).is_err() {
            return None;
        }
        let mut header = [0; SECTION_HEADER_BYTES];
        if from.read_exact(&mut header).is_err() {
            return None;
        }
        let section = SectionHeader::from_bytes(&header).expect("a section");
        if section.kind == kind && !hit {
            hit = true;
            match fault {
                Fault::Cut(after) => {
                    let _ = to.write_all(&header[..after]);
                    let _ = from.shutdown(Shutdown::Both);
                    return Some(());
                }
                stall => stall.stall(),
            }
        }
        if to.write_all(&header).is_err() {
            return None;
        }
        bytes.resize(section.length as usize, 0);
    }
}
