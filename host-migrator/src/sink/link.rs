// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to the destination.

use std::io;
use std::time::Duration;

use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Connection, Heartbeats, StopFlag};

/// Both directions of the connection to the destination.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) out: SectionWriter,
    pub(crate) peer: SectionReader,
    /// Stops the waits of both directions.
    pub(crate) stop: StopFlag,
    /// From the stream's header on.
    pub(crate) heartbeats: Option<Heartbeats>,
    /// The runs of the section that is being sent.
    pub(super) table: Vec<u8>,
}

impl Link {
    pub(crate) fn new(channel: Connection) -> Self {
        let stop = channel.stop_flag();
        let (reader, writer) = channel.split();
        Self {
            out: SectionWriter::new(writer),
            peer: SectionReader::new(reader),
            stop,
            heartbeats: None,
            table: Vec::new(),
        }
    }

    /// Sets how long the destination may neither accept nor send a byte from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.out.set_patience(patience);
        self.peer.set_patience(patience);
    }

    /// Starts sending heartbeats. The stream's header must have been sent.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start_heartbeats(&mut self) -> io::Result<()> {
        self.heartbeats = Some(Heartbeats::start(&self.out)?);
        Ok(())
    }

    /// Closes the connection after a failed migration. The destination is told why, if that is still possible.
    pub(crate) fn abort(mut self, reason: &str) {
        self.heartbeats = None;
        self.out.abort(reason);
        self.out.finish();
        // If a socket is closed with unread bytes (heartbeats, too), the kernel may drop what it has sent.
        self.peer.forget_received();
    }
}
