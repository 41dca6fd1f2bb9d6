// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channels of a migration: connections that carry pages besides the control connection, each with a thread of its own.
//!
//! A page goes over whichever channel is free, so the channels have to be drained before a page may be sent again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use spec::stream::{ChannelHeader, GREETING_BYTES, Greeting, Nonce};

use super::SinkError;
use super::pages_section::PagesSection;
use super::queue::{Queue, Tried};
use crate::memory::page_buffer::PageBuffer;
use crate::panics::text_of;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Closer, Connection, SectionError};

/// How many buffers wait for a channel at most. More would only make a drain longer.
const MOST_WAITING: usize = 4;

/// Channels to the destination.
#[derive(Debug)]
pub(crate) struct Channels {
    queue: Arc<Queue>,
    channels: Vec<Channel>,
    /// Bytes of everything that was put into the queue or sent since.
    accepted: u64,
}

#[derive(Debug)]
struct Channel {
    out: SectionWriter,
    connection: Closer,
    /// Bytes sent.
    bytes: Arc<AtomicU64>,
    /// Bytes that had been sent when the channel was drained last, the drain included.
    drained_at: u64,
    thread: Option<JoinHandle<()>>,
}

impl Channels {
    /// Has `connections` join the session of `nonce`, and starts a thread for each.
    ///
    /// # Errors
    /// If the destination's greeting does not arrive, or a thread cannot be started.
    pub(crate) fn join(
        connections: impl IntoIterator<Item = io::Result<Connection>>,
        nonce: Nonce,
    ) -> Result<Self, SinkError> {
        let mut channels = Self {
            queue: Arc::new(Queue::new(MOST_WAITING)),
            channels: Vec::new(),
            accepted: 0,
        };
        for connection in connections {
            channels.add(connection?, nonce)?;
        }
        Ok(channels)
    }

    fn add(&mut self, connection: Connection, nonce: Nonce) -> Result<(), SinkError> {
        let number = self.count();
        let closer = connection.closer();
        let (reader, writer) = connection.split();
        let (mut peer, mut out) = (SectionReader::new(reader), SectionWriter::new(writer));
        let greeting: [u8; GREETING_BYTES] = peer.start()?;
        let Greeting { session } = Greeting::from_bytes(&greeting).map_err(SectionError::from)?;
        let header = ChannelHeader {
            session,
            nonce,
            channel: number,
        };
        out.start(&header.to_bytes())?;
        let bytes = Arc::<AtomicU64>::default();
        let sender = Sender {
            number,
            queue: Arc::clone(&self.queue),
            peer,
            out: out.clone(),
            bytes: Arc::clone(&bytes),
        };
        let thread = thread::Builder::new()
            .name(format!("channel {number}"))
            .spawn(move || sender.run())?;
        self.channels.push(Channel {
            out,
            connection: closer,
            bytes,
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
        (self.channels.iter()).map(|channel| channel.bytes.load(Ordering::Relaxed))
    }

    /// Bytes sent on all channels, and those of the pages that are on their way to one. Never falls.
    pub(crate) fn bytes(&self) -> u64 {
        self.accepted
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
        let bytes = PagesSection::bytes(full.runs().len(), full.pages());
        while self.queue.put(full)? == Tried::NotYet {
            wait()?;
        }
        self.accepted += bytes;
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
            channel.bytes.store(channel.drained_at, Ordering::Relaxed);
        }
        // With what was not counted yet: headers, drains and heartbeats.
        self.accepted = self.drained_bytes();
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

/// The thread of a channel.
struct Sender {
    number: u32,
    queue: Arc<Queue>,
    peer: SectionReader,
    out: SectionWriter,
    bytes: Arc<AtomicU64>,
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
        let mut section = PagesSection::default();
        while let Some(pages) = self.queue.take() {
            // Reads the destination's heartbeats, and notices its end.
            self.peer.check_peer()?;
            section.pages(&mut self.out, pages.runs(), pages.content())?;
            self.bytes.store(self.out.bytes(), Ordering::Relaxed);
            self.queue.sent(pages);
        }
        Ok(())
    }
}
