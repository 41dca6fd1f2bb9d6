// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way to the destination: the control connection, and the channels beside it.

use std::io;
use std::iter;
use std::time::Duration;

use super::channels::Channels;
use super::pages_section::PagesSection;
use crate::compression::Compression;
use crate::wire::sections::{SectionReader, SectionWriter};
use crate::wire::{Connection, Heartbeats, Redial, StopFlag};

/// Both directions of the control connection, and the channels.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) out: SectionWriter,
    pub(crate) peer: SectionReader,
    /// Connects channels.
    pub(crate) redial: Redial,
    /// Stops all waits.
    pub(crate) stop: StopFlag,
    /// From the stream's header on.
    pub(crate) heartbeats: Option<Heartbeats>,
    /// Carry the pages of large rounds; none: everything goes over the control connection.
    pub(super) channels: Option<Channels>,
    /// The round's pages go over the channels.
    pub(super) fans_out: bool,
    /// The channels are drained before a harvest in the middle of a round; a test build may leave that out.
    pub(super) drains: bool,
    /// Something was sent that no drain has followed.
    pub(super) under_way: bool,
    /// Some of that went over the channels.
    pub(super) on_channels: bool,
    /// The answer to the last drains was not read yet.
    pub(super) drains_unanswered: bool,
    pub(super) section: PagesSection,
    pub(super) compression: Compression,
}

impl Link {
    /// The way over `control`.
    ///
    /// # Errors
    /// If a handshake that it awaits fails.
    pub(crate) fn new(mut control: Connection) -> io::Result<Self> {
        let stop = control.stop_flag();
        let redial = Redial::of(&mut control);
        let (reader, writer) = control.split()?;
        Ok(Self {
            out: SectionWriter::new(writer),
            peer: SectionReader::new(reader),
            redial,
            stop,
            heartbeats: None,
            channels: None,
            fans_out: false,
            drains: true,
            under_way: false,
            on_channels: false,
            drains_unanswered: false,
            section: PagesSection::default(),
            compression: Compression::None,
        })
    }

    /// From now on the pages on the control connection are compressed so.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(crate) fn compress(&mut self, compression: Compression) -> io::Result<()> {
        self.section = PagesSection::compressed(compression)?;
        self.compression = compression;
        Ok(())
    }

    /// Sets how long the destination may neither accept nor send a byte from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.out.set_patience(patience);
        self.peer.set_patience(patience);
    }

    /// Sends pages over `channels` from now on, which have joined. They are drained before a harvest in
    /// the middle of a round if `drains`.
    ///
    /// # Errors
    /// If no thread can be started for their heartbeats.
    pub(crate) fn fan_out(&mut self, channels: Channels, drains: bool) -> io::Result<()> {
        let outs = iter::once(self.out.clone()).chain(channels.writers());
        self.heartbeats = Some(Heartbeats::start(outs.collect())?);
        self.channels = Some(channels);
        self.drains = drains;
        Ok(())
    }

    /// Starts sending heartbeats. The stream's header must have been sent.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start_heartbeats(&mut self) -> io::Result<()> {
        self.heartbeats = Some(Heartbeats::start(vec![self.out.clone()])?);
        Ok(())
    }

    /// Closes the connection after a failed migration. The destination is told why, if that is still possible.
    pub(crate) fn abort(mut self, reason: &str) {
        self.heartbeats = None;
        self.channels = None;
        self.out.abort(reason);
        self.out.finish();
        // If a socket is closed with unread bytes (heartbeats, too), the kernel may drop what it has sent.
        self.peer.forget_received();
    }
}
