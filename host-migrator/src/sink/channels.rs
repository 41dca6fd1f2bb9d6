// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channels of a migration: connections that carry pages besides the control connection, each with a thread of its own.
//!
//! A page goes over whichever channel is free, so the channels have to be drained before a page may be sent again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use spec::stream::{ChannelHeader, GREETING_BYTES, Greeting, Nonce};

use super::SinkError;
use super::carried::Carried;
use super::pages_section::PagesSection;
use super::queue::{Queue, Tried};
use crate::compression::Compression;
use crate::memory::page_buffer::PageBuffer;
use crate::panics::text_of;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Closer, Connection, SectionError};

/// How many buffers wait for a channel at most. More would only make a drain longer.
const MOST_WAITING: usize = 4;
/// How many channels join at the same time: fewer than connections that a destination hears at a time.
const MOST_AT_A_TIME: u32 = 16;

/// Channels to the destination.
#[derive(Debug)]
pub(crate) struct Channels {
    queue: Arc<Queue>,
    channels: Vec<Channel>,
}

/// What a channel has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    bytes: u64,
    carried: Carried,
}

#[derive(Debug)]
struct Channel {
    out: SectionWriter,
    connection: Closer,
    sent: Arc<Mutex<Sent>>,
    /// Bytes that had been sent when the channel was drained last, the drain included.
    drained_at: u64,
    thread: Option<JoinHandle<()>>,
}

impl Channels {
    /// Has `count` connections of `connect` join the session of `nonce`, several at a time, and starts a thread for each, which
    /// compresses pages so.
    ///
    /// # Errors
    /// The first failure: a connection that cannot be made, a greeting of the destination that does not arrive, or a thread
    /// that cannot be started.
    pub(crate) fn join(
        count: u32,
        connect: impl Fn() -> io::Result<Connection> + Sync,
        nonce: Nonce,
        compression: Compression,
    ) -> Result<Self, SinkError> {
        let mut channels = Self {
            queue: Arc::new(Queue::new(MOST_WAITING)),
            channels: Vec::new(),
        };
        for introduced in introduce_all(0, count, &connect, nonce)? {
            channels.add(introduced, compression)?;
        }
        Ok(channels)
    }

    fn add(&mut self, introduced: Introduced, compression: Compression) -> Result<(), SinkError> {
        let Introduced {
            number,
            connection,
            peer,
            out,
        } = introduced;
        let sent = Arc::<Mutex<Sent>>::default();
        let sender = Sender {
            number,
            queue: Arc::clone(&self.queue),
            peer,
            out: out.clone(),
            section: PagesSection::compressed(compression)?,
            sent: Arc::clone(&sent),
        };
        let thread = thread::Builder::new()
            .name(format!("channel {number}"))
            .spawn(move || sender.run())?;
        self.channels.push(Channel {
            out,
            connection,
            sent,
            drained_at: 0,
            thread: Some(thread),
        });
        Ok(())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u32 {
        self.channels.len() as u32
    }

    /// What sends on the channels, for heartbeats.
    pub(crate) fn writers(&self) -> impl Iterator<Item = SectionWriter> {
        self.channels.iter().map(|channel| channel.out.clone())
    }

    /// Bytes sent on each channel.
    pub(crate) fn bytes_by_channel(&self) -> impl Iterator<Item = u64> {
        self.channels
            .iter()
            .map(|channel| channel.sent.lock().bytes)
    }

    /// Bytes sent on all channels.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_by_channel().sum()
    }

    /// Bytes of the pages that are on their way to a channel, at most: some may be compressed.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.queue.plain_bytes()
    }

    /// The pages that were sent on each channel.
    pub(crate) fn carried(&self) -> impl Iterator<Item = Carried> {
        self.channels
            .iter()
            .map(|channel| channel.sent.lock().carried)
    }

    /// Bytes sent on all channels up to their last drains.
    pub(crate) fn drained_bytes(&self) -> u64 {
        self.channels.iter().map(|channel| channel.drained_at).sum()
    }

    /// Takes the pages of `full`, to be sent by the first channel that is free. `wait` is called now and then until there is
    /// room for them.
    pub(crate) fn put(
        &mut self,
        full: &mut PageBuffer,
        mut wait: impl FnMut() -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        while self.queue.put(full)? == Tried::NotYet {
            wait()?;
        }
        Ok(())
    }

    /// Sends what waits, and after it a drain on every channel, in `round`. `wait` is called now and then.
    pub(crate) fn drain(
        &mut self,
        mut wait: impl FnMut() -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        while self.queue.empty()? == Tried::NotYet {
            wait()?;
        }
        for channel in &mut self.channels {
            channel.drained_at = channel.out.drain()?;
            channel.sent.lock().bytes = channel.drained_at;
        }
        Ok(())
    }

    /// The round that the next pages belong to. The channels are drained.
    pub(crate) fn set_round(&mut self, round: u32) {
        for channel in &mut self.channels {
            channel.out.set_round(round);
        }
    }

    /// An error if a channel has failed.
    pub(crate) fn check(&self) -> Result<(), SinkError> {
        self.queue.check()
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.queue.close();
        for channel in &mut self.channels {
            // A thread that is sending notices at once.
            channel.connection.shut();
            if let Some(thread) = channel.thread.take() {
                // A panic in it has been told as the channel's failure.
                let _ = thread.join();
            }
        }
    }
}

/// A channel that has answered the destination's greeting.
pub(crate) struct Introduced {
    number: u32,
    pub(crate) connection: Closer,
    pub(crate) peer: SectionReader,
    pub(crate) out: SectionWriter,
}

/// Introduces `count` channels, numbered from `first` on, [`MOST_AT_A_TIME`] at a time, so that a long link is not waited for once for each.
pub(crate) fn introduce_all(
    first: u32,
    count: u32,
    connect: &(impl Fn() -> io::Result<Connection> + Sync),
    nonce: Nonce,
) -> Result<Vec<Introduced>, SinkError> {
    let (next, failed) = (AtomicU32::new(0), AtomicBool::new(false));
    let one_by_one = || {
        let mut introduced = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            let channel = connect()
                .map_err(SinkError::from)
                .and_then(|connection| introduce(connection, first + number, nonce));
            failed.fetch_or(channel.is_err(), Ordering::Relaxed);
            introduced.push(channel?);
        }
        Ok(introduced)
    };
    let by_thread = thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, one_by_one);
        let threads: Vec<_> = (0..count.min(MOST_AT_A_TIME)).map(spawn).collect();
        (threads.into_iter())
            .map(|thread| thread?.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect::<Result<Vec<Vec<Introduced>>, SinkError>>()
    })?;
    let mut introduced: Vec<_> = by_thread.into_iter().flatten().collect();
    introduced.sort_by_key(|channel| channel.number);
    Ok(introduced)
}

fn introduce(connection: Connection, number: u32, nonce: Nonce) -> Result<Introduced, SinkError> {
    let closer = connection.closer();
    let (reader, writer) = connection.split()?;
    let (mut peer, mut out) = (SectionReader::new(reader), SectionWriter::new(writer));
    let greeting: [u8; GREETING_BYTES] = peer.start()?;
    let Greeting { session } = Greeting::from_bytes(&greeting).map_err(SectionError::from)?;
    let header = ChannelHeader {
        session,
        nonce,
        channel: number,
    };
    out.start(&header.to_bytes())?;
    Ok(Introduced {
        number,
        connection: closer,
        peer,
        out,
    })
}

/// The thread of a channel.
struct Sender {
    number: u32,
    queue: Arc<Queue>,
    peer: SectionReader,
    out: SectionWriter,
    section: PagesSection,
    sent: Arc<Mutex<Sent>>,
}

impl Sender {
    fn run(mut self) {
        let channel = self.number;
        let queue = Arc::clone(&self.queue);
        match catch_unwind(AssertUnwindSafe(|| self.send())) {
            Ok(Ok(())) => {}
            Ok(Err(source)) => queue.fail(SinkError::Channel { channel, source }),
            Err(panic) => {
                let text = text_of(&*panic);
                queue.fail(SinkError::ChannelPanicked { channel, text });
            }
        }
    }

    /// Sends what waits in the queue until there will be no more.
    fn send(&mut self) -> Result<(), SectionError> {
        while let Some(pages) = self.queue.take() {
            // Reads the destination's heartbeats, and notices its end.
            self.peer.check_peer()?;
            (self.section).pages(&mut self.out, pages.runs(), pages.content())?;
            *self.sent.lock() = Sent {
                bytes: self.out.bytes(),
                carried: self.section.carried(),
            };
            self.queue.sent(pages);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use parking_lot::Mutex;
    use spec::stream::STREAM_HEADER_BYTES;

    use super::*;

    #[test]
    fn channels_do_not_wait_for_each_other_to_join() {
        for first in [0, 1] {
            let pairs = [(); 2].map(|()| UnixStream::pair().unwrap());
            let [(near_a, far_a), (near_b, far_b)] = pairs;
            let near = Mutex::new(vec![near_a, near_b]);
            let connect = || {
                let stream = near.lock().pop().unwrap();
                Connection::try_from(stream)
            };
            let destination = thread::spawn(move || {
                let mut far = [far_a, far_b];
                far.rotate_left(first);
                // The second is greeted when the first has joined.
                far.map(|mut far| {
                    let greeting = Greeting { session: 7 }.to_bytes();
                    far.write_all(&greeting).unwrap();
                    let mut header = [0; STREAM_HEADER_BYTES];
                    far.read_exact(&mut header).unwrap();
                    ChannelHeader::from_bytes(&header).unwrap().channel
                })
            });
            let channels =
                Channels::join(2, connect, Nonce::new([1; 16]), Compression::None).unwrap();
            assert_eq!(channels.count(), 2);
            let mut numbers = destination.join().unwrap();
            numbers.sort_unstable();
            assert_eq!(numbers, [0, 1]);
        }
    }
}
