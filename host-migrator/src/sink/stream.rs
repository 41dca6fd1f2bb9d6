// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration stream as a sink (`spec/migration-stream.md`).
//!
//! On a single connection the destination takes section after section, so nothing overtakes what was sent before. Channels
//! overtake each other and the control connection, so they are drained before a page can come again.

use std::time::Duration;

use spec::PageRange;
use spec::stream::{SectionKind, StatePrefix, Totals};

use super::channels::Channels;
use super::link::Link;
use super::{Carried, Sink, SinkError};
use crate::compression::Compression;
use crate::memory::page_buffer::PageBuffer;
use crate::vm::state::StateSection;

/// A round of no more pages (4 MiB) goes over the control connection: to drain the channels would take longer than they save.
const FEW_PAGES: u64 = 1024;

impl Sink for Link {
    fn pages(&mut self, runs: &[PageRange], content: &[u8]) -> Result<(), SinkError> {
        self.under_way = true;
        Ok(self.section.pages(&mut self.out, runs, content)?)
    }

    fn take_pages(&mut self, pages: &mut PageBuffer) -> Result<(), SinkError> {
        match &mut self.channels {
            Some(channels) if self.fans_out => {
                self.under_way = true;
                self.on_channels = true;
                channels.put(pages, || Ok(self.peer.check_peer()?))
            }
            _ => self.pages(pages.runs(), pages.content()),
        }
    }

    fn zero(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.runs(SectionKind::Zero, runs)
    }

    fn discard(&mut self, runs: &[PageRange]) -> Result<(), SinkError> {
        self.runs(SectionKind::Discard, runs)
    }

    fn begin_round(&mut self, pages: u64) {
        self.fans_out = pages > FEW_PAGES;
    }

    fn drain(&mut self) -> Result<(), SinkError> {
        if self.drains && self.send_drains()? {
            self.peer.expect(SectionKind::Drained, "Drained")?;
        }
        Ok(())
    }

    fn channels(&self) -> u32 {
        self.channels
            .as_ref()
            .map_or(1, |channels| channels.count())
    }

    fn bytes_by_channel(&self, bytes: &mut Vec<u64>) {
        let channels = self.channels.iter();
        bytes.extend(channels.flat_map(Channels::bytes_by_channel));
    }

    fn is_drained(&self) -> bool {
        !self.under_way && !self.drains_unanswered
    }

    fn end_round(&mut self, round: u32) -> Result<(), SinkError> {
        // What went over the control connection alone needs no drain, as the end of the round follows it there.
        if self.on_channels {
            self.drains_unanswered |= self.send_drains()?;
        }
        self.out.section(SectionKind::RoundEnd, [])?;
        // What follows is counted to the next round, the machine's state after the last one included.
        self.out.set_round(round + 1);
        if let Some(channels) = &mut self.channels {
            channels.set_round(round + 1);
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), SinkError> {
        if std::mem::take(&mut self.drains_unanswered) {
            self.peer.expect(SectionKind::Drained, "Drained")?;
        }
        self.peer
            .expect(SectionKind::RoundReceived, "RoundReceived")?;
        self.under_way &= self.on_channels;
        Ok(())
    }

    fn state(&mut self, section: &StateSection) -> Result<(), SinkError> {
        let prefix = StatePrefix {
            version: section.version,
            name_bytes: section.name.len() as u32,
        };
        let parts = [&prefix.to_bytes(), section.name.as_bytes(), &section.bytes];
        Ok(self.out.section(SectionKind::MachineState, parts)?)
    }

    fn commit(&mut self, totals: Totals) -> Result<(), SinkError> {
        let channels = self.channels.as_ref();
        let bytes = channels.map_or(0, |channels| channels.drained_bytes());
        Ok(self.out.commit(Totals { bytes, ..totals })?)
    }

    fn bytes(&self) -> u64 {
        let channels = self.channels.as_ref();
        self.out.bytes() + channels.map_or(0, |channels| channels.bytes())
    }

    fn waiting_bytes(&self) -> u64 {
        let channels = self.channels.as_ref();
        channels.map_or(0, |channels| channels.waiting_bytes())
    }

    fn compression(&self) -> Compression {
        self.compression
    }

    fn carried(&self) -> Carried {
        let channels = self.channels.iter().flat_map(Channels::carried);
        channels.fold(self.section.carried(), |mut sum, carried| {
            sum += carried;
            sum
        })
    }

    fn begin_switchover(&mut self, limit: Duration) {
        // Bytes of the destination do not extend it, because the guest is stopped.
        self.stop.set_deadline(limit, "the switchover");
    }

    fn check(&mut self) -> Result<(), SinkError> {
        self.stop.check_deadline()?;
        if let Some(channels) = &self.channels {
            channels.check()?;
        }
        Ok(self.peer.check_peer()?)
    }
}

impl Link {
    pub(crate) fn runs(&mut self, kind: SectionKind, runs: &[PageRange]) -> Result<(), SinkError> {
        self.under_way = true;
        Ok(self.section.runs(&mut self.out, kind, runs)?)
    }

    /// Sends drains on all channels and on the control connection, unless nothing has been sent since the last ones.
    /// Returns whether it has.
    fn send_drains(&mut self) -> Result<bool, SinkError> {
        let Some(channels) = &mut self.channels else {
            return Ok(false);
        };
        if !std::mem::take(&mut self.under_way) {
            return Ok(false);
        }
        self.on_channels = false;
        channels.drain(|| Ok(self.peer.check_peer()?))?;
        self.out.drain()?;
        Ok(true)
    }
}
