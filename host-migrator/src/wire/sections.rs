// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sections of the migration stream on a connection: numbered, with checksums, counted.

mod error;
mod receiving;

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spec::stream::{LENT_BYTES, SECTION_HEADER_BYTES, SectionHeader, SectionKind, Totals};
use spec_sockets::rights;

pub use error::SectionError;
pub(crate) use receiving::SectionReader;

use super::stop::StopFlag;
use super::writer::{WriteError, Writer};

/// Sends sections. Its clones send on the same connection, one section at a time.
#[derive(Clone, Debug)]
pub(crate) struct SectionWriter(Arc<Mutex<Line>>);

/// What the clones of a [`SectionWriter`] share. It is locked while a section is being sent.
#[derive(Debug)]
struct Line {
    out: Writer,
    sequence: u32,
    round: u32,
    bytes: u64,
    /// The rest of a heartbeat that the kernel took only in part. It is sent before anything else.
    owed: Vec<u8>,
    last_sent: Instant,
    /// The peer does not read any more, so no more heartbeats are sent.
    quiet: bool,
    /// A section was sent only in part, so the peer cannot read anything after it.
    broken: bool,
}

impl SectionWriter {
    pub(crate) fn new(out: Writer) -> Self {
        Self(Arc::new(Mutex::new(Line {
            out,
            sequence: 0,
            round: 1,
            bytes: 0,
            owed: Vec::new(),
            last_sent: Instant::now(),
            quiet: false,
            broken: false,
        })))
    }

    /// Bytes sent so far, heartbeats included.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.lock().bytes
    }

    /// From now on `stop` ends its waits.
    pub(crate) fn set_stop(&mut self, stop: StopFlag) {
        self.0.lock().out.set_stop(stop);
    }

    /// Sets how long the peer may take nothing from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.0.lock().out.set_patience(patience);
    }

    /// Sets the round that the next sections belong to.
    pub(crate) fn set_round(&mut self, round: u32) {
        self.0.lock().round = round;
    }

    /// Sends bytes outside of any section: a greeting or a stream header.
    pub(crate) fn start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .send(&mut [IoSlice::new(bytes)])
            .map_err(|error| error.source)
    }

    /// Sends one section. Its payload is `parts`, one after the other.
    pub(crate) fn section<const N: usize>(
        &mut self,
        kind: SectionKind,
        parts: [&[u8]; N],
    ) -> io::Result<()> {
        let sum = sum(&parts);
        let sent = self.0.lock().section(kind, parts, sum);
        sent.map_err(|error| error.source)
    }

    /// Sends the totals. Adds the number of bytes sent before them.
    pub(crate) fn commit(&mut self, totals: Totals) -> io::Result<()> {
        let mut line = self.0.lock();
        // The rest of a heartbeat is sent before the totals.
        let bytes = totals.bytes + line.bytes + line.owed.len() as u64;
        let totals = Totals { bytes, ..totals }.to_bytes();
        let sent = line.section(SectionKind::Commit, [&totals], sum(&[&totals]));
        sent.map_err(|error| error.source)
    }

    /// Sends a drain. Returns the bytes sent so far, the drain included.
    pub(crate) fn drain(&mut self) -> io::Result<u64> {
        let mut line = self.0.lock();
        let sent = line.section(SectionKind::Drain, [], sum(&[]));
        sent.map_err(|error| error.source)?;
        Ok(line.bytes)
    }

    /// Sends the table of lent memory ([`SectionKind::Memory`]), and with each entry the descriptor of its file.
    pub(crate) fn memory(&mut self, table: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = self.0.lock().memory(table, files);
        sent.map_err(|error| error.source)
    }

    /// Gives the guest up. This section is the last, and no heartbeat follows. The error says how many bytes of it left
    /// this side.
    pub(crate) fn hand_over(&mut self) -> Result<(), WriteError> {
        let mut line = self.0.lock();
        // The destination reads no more. If its socket is closed with unread bytes, the kernel discards its last
        // answer.
        line.quiet = true;
        line.section(SectionKind::HandOver, [], sum(&[]))
    }

    /// Sends a heartbeat if nothing was sent for `interval`. Returns when to check again. Never waits: while another
    /// section is being sent, or the socket is full, the peer has something to read anyway.
    pub(super) fn beat(&self, interval: Duration) -> Duration {
        let Some(mut line) = self.0.try_lock() else {
            return interval;
        };
        let since = line.last_sent.elapsed();
        if since < interval {
            return interval - since;
        }
        line.beat();
        interval
    }

    /// Tells the other side, if that is still possible, that the migration is cancelled, and why.
    pub(crate) fn abort(&mut self, reason: &str) {
        let limit = SectionKind::Abort.max_length() as usize;
        let reason = &reason.as_bytes()[..reason.len().min(limit)];
        let mut line = self.0.lock();
        line.quiet = true;
        if !line.broken {
            // Fails if the connection is the reason for the cancellation.
            let _ = line.section(SectionKind::Abort, [reason], sum(&[reason]));
        }
    }

    /// Ends the sending direction.
    pub(crate) fn finish(&mut self) {
        let mut line = self.0.lock();
        line.quiet = true;
        line.out.finish();
    }
}

impl Line {
    fn section<const N: usize>(
        &mut self,
        kind: SectionKind,
        parts: [&[u8]; N],
        payload: Sum,
    ) -> Result<(), WriteError> {
        let number = self.sequence;
        let header = self.next_header(kind, payload);
        let mut slices = [IoSlice::new(&[]); 4];
        slices[0] = IoSlice::new(&header);
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let sent = self.send(&mut slices[..=N]);
        if let Err(WriteError { written: 0, .. }) = &sent {
            // The next section, which may say why, must not seem to follow a lost one.
            self.sequence = number;
        }
        sent
    }

    fn memory(&mut self, table: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), WriteError> {
        let header = self.next_header(SectionKind::Memory, sum(&[table]));
        self.send(&mut [IoSlice::new(&header)])?;
        let entries = table.chunks(rights::MOST * LENT_BYTES);
        for (entries, files) in entries.zip(files.chunks(rights::MOST)) {
            let result = self.out.write_with_files(entries, files);
            let written = (result.as_ref()).map_or_else(|error| error.written, |()| entries.len());
            self.count(written);
            self.broken |= result.is_err();
            result?;
        }
        Ok(())
    }

    fn next_header(&mut self, kind: SectionKind, payload: Sum) -> [u8; SECTION_HEADER_BYTES] {
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round: self.round,
            length: payload.length,
            payload_crc: payload.crc,
        };
        self.sequence = self.sequence.wrapping_add(1);
        header.to_bytes()
    }

    fn beat(&mut self) {
        if self.quiet || self.broken {
            return;
        }
        if self.owed.is_empty() {
            // Numbered only if it is sent: the next section must not seem to follow a lost one.
            let number = self.sequence;
            let header = self.next_header(SectionKind::Heartbeat, sum(&[]));
            match self.out.try_write(&header) {
                0 => self.sequence = number,
                written => {
                    self.owed.extend(&header[written..]);
                    self.count(written);
                }
            }
        } else {
            let written = self.out.try_write(&self.owed);
            self.owed.drain(..written);
            self.count(written);
        }
    }

    fn send(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), WriteError> {
        if !self.owed.is_empty() {
            let result = self.out.write_all(&mut [IoSlice::new(&self.owed)]);
            let written =
                (result.as_ref()).map_or_else(|error| error.written, |()| self.owed.len());
            self.owed.drain(..written);
            self.count(written);
            // No byte of the section itself has been sent.
            result.map_err(|error| WriteError {
                written: 0,
                ..error
            })?;
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let result = self.out.write_all(parts);
        let written = (result.as_ref()).map_or_else(|error| error.written, |()| length);
        self.count(written);
        self.broken |= result.is_err() && written != 0;
        result
    }

    fn count(&mut self, written: usize) {
        self.bytes += written as u64;
        if written > 0 {
            self.last_sent = Instant::now();
        }
    }
}

/// Length and checksum of a payload.
#[derive(Clone, Copy)]
struct Sum {
    length: u64,
    crc: u32,
}

fn sum(parts: &[&[u8]]) -> Sum {
    let mut hasher = crc32fast::Hasher::new();
    let mut length = 0;
    for part in parts {
        hasher.update(part);
        length += part.len() as u64;
    }
    Sum {
        length,
        crc: hasher.finalize(),
    }
}

#[cfg(test)]
mod tests;
