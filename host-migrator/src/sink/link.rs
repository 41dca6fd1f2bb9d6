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
    /// Ends the waits of both.
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

    /// How long the destination may neither take nor give a byte from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.out.set_patience(patience);
        self.peer.set_patience(patience);
    }

    /// Begins to send heartbeats. The stream's header has been sent.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start_heartbeats(&mut self) -> io::Result<()> {
        self.heartbeats = Some(Heartbeats::start(&self.out)?);
        Ok(())
    }

    /// Closes the connection after a migration that failed: the destination is told why, if it still can be.
    pub(crate) fn abort(mut self, reason: &str) {
        self.heartbeats = None;
        self.out.abort(reason);
        self.out.finish();
        // A socket that is closed with unread bytes, heartbeats too, takes back what it sent.
        self.peer.forget_received();
    }
}
