// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bare loop: what a machine can do if a program does nothing but send, receive and place memory.
//!
//! Each connection has a thread on either side and moves its own part of memory, a MiB at a time, in order. Nothing is
//! tested, summed or acknowledged.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, ScopedJoinHandle};

use host_migrator::GuestRam;
use rustix::net::{RecvFlags, recv};
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{Bytes, GuestAddress};

use super::BenchError;
use super::arm::{Arm, Place};
use super::content::{CHUNK_BYTES, Content, chunks};
use super::memory::Destination;
use super::record::{Clock, Sample};
use crate::args::Transport;

/// A bare loop with `channels` connections.
#[derive(Debug)]
pub(super) struct BareLoop {
    pub(super) transport: Transport,
    pub(super) place: Place,
    pub(super) channels: u16,
}

impl Arm for BareLoop {
    fn run(&self, content: &Content) -> Result<Sample, BenchError> {
        let destination = match self.place {
            Place::Scratch => None,
            Place::Fresh => Some(Destination::new(content, false)?),
            Place::Populated => Some(Destination::new(content, true)?),
        };
        let connections = (0..self.channels)
            .map(|_| connected(self.transport))
            .collect::<io::Result<Vec<_>>>()
            .map_err(BenchError::io("cannot connect to this machine"))?;
        let parts = content.parts(self.channels);
        let clock = Clock::start();
        thread::scope(|scope| {
            let mut threads: Vec<ScopedJoinHandle<'_, Result<(), BenchError>>> = Vec::new();
            for (part, (near, far)) in parts.into_iter().zip(connections) {
                let to = destination.as_ref();
                // Each thread owns its end: if it fails, the other end's thread ends, too.
                let sender = thread::Builder::new()
                    .name("bare-source".into())
                    .spawn_scoped(scope, move || {
                        send(content.ram(), part, near).map_err(BenchError::io("cannot send"))
                    });
                threads.push(sender.map_err(BenchError::io("cannot start a thread"))?);
                let receiver = thread::Builder::new()
                    .name("bare-target".into())
                    .spawn_scoped(scope, move || receive(to, part, &far));
                threads.push(receiver.map_err(BenchError::io("cannot start a thread"))?);
            }
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect::<Result<Vec<()>, _>>()
        })?;
        let took = clock.took();
        Sample::new(took, content, destination.as_ref())
    }
}

/// Two ends of a connection.
fn connected(transport: Transport) -> io::Result<(OwnedFd, OwnedFd)> {
    match transport {
        Transport::Tcp => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let near = TcpStream::connect(listener.local_addr()?)?;
            near.set_nodelay(true)?;
            Ok((near.into(), listener.accept()?.0.into()))
        }
        Transport::Unix => {
            let (near, far) = UnixStream::pair()?;
            Ok((near.into(), far.into()))
        }
    }
}

/// Sends `part` from memory itself, without a copy of its own.
fn send(ram: &GuestRam, part: PageRange, mut near: OwnedFd) -> io::Result<()> {
    for chunk in chunks(part) {
        let address = GuestAddress(chunk.first() * PAGE_SIZE);
        ram.memory()
            .write_all_volatile_to(address, &mut near, chunk.bytes() as usize)
            .map_err(io::Error::other)?;
    }
    Ok(())
}

/// Receives `part` into a buffer, and writes it to its place in memory, if there is one.
fn receive(to: Option<&Destination>, part: PageRange, far: &OwnedFd) -> Result<(), BenchError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    for chunk in chunks(part) {
        let bytes = &mut buffer[..chunk.bytes() as usize];
        fill(far, bytes).map_err(BenchError::io("cannot receive"))?;
        if let Some(to) = to {
            to.ram().write(chunk, bytes)?;
        }
    }
    Ok(())
}

fn fill(far: &OwnedFd, bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        match recv(far, &mut bytes[filled..], RecvFlags::WAITALL) {
            Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok((count, _)) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
