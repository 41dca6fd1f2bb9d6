// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sections of the migration stream on a connection: numbered, with checksums, counted.

use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use spec::stream::{
    LENT_BYTES, SECTION_HEADER_BYTES, SectionHeader, SectionKind, StreamError, Totals,
};
use spec_sockets::rights;

use super::reader::Reader;
use super::stop::StopFlag;
use super::writer::{WriteError, Writer};

/// A stream that has broken off or is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// The connection failed.
    #[error("connection to the other side: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a migration stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A section was lost, repeated or reordered.
    #[error("section {found} arrived where section {expected} was due")]
    Sequence {
        /// The expected number.
        expected: u32,
        /// The number that arrived.
        found: u32,
    },
    /// The payload's checksum is wrong.
    #[error("the checksum of section {sequence} ({kind:?}) is wrong: the stream is corrupt")]
    Checksum {
        /// The section's kind.
        kind: SectionKind,
        /// Its number.
        sequence: u32,
    },
    /// A section of a kind that is not allowed here.
    #[error("a {found:?} section arrived where {expected} was due")]
    Unexpected {
        /// What arrived.
        found: SectionKind,
        /// What was expected.
        expected: &'static str,
    },
    /// The other side ended the migration.
    #[error("the other side gave up: {0}")]
    Aborted(String),
}

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

/// Receives sections.
#[derive(Debug)]
pub(crate) struct SectionReader {
    input: Reader,
    sequence: u32,
    bytes: u64,
    /// Bytes received before the section whose header was read last.
    before_section: u64,
}

impl SectionReader {
    pub(crate) fn new(input: Reader) -> Self {
        Self {
            input,
            sequence: 0,
            bytes: 0,
            before_section: 0,
        }
    }

    /// From now on `stop` ends its waits.
    pub(crate) fn set_stop(&mut self, stop: StopFlag) {
        self.input.set_stop(stop);
    }

    /// Sets how long the peer may send nothing from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.input.set_patience(patience);
    }

    /// Bytes received so far, heartbeats included.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of these, the bytes before the section whose header was read last.
    pub(crate) fn bytes_before_section(&self) -> u64 {
        self.before_section
    }

    /// Receives bytes outside of any section.
    pub(crate) fn start<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives the header of the next section that is no heartbeat. An [`SectionKind::Abort`] section is returned as
    /// an error.
    pub(crate) fn header(&mut self) -> Result<SectionHeader, SectionError> {
        loop {
            if let Some(header) = self.header_or_heartbeat()? {
                return Ok(header);
            }
        }
    }

    /// Receives a section's header; `None` for a heartbeat.
    pub(crate) fn header_or_heartbeat(&mut self) -> Result<Option<SectionHeader>, SectionError> {
        self.before_section = self.bytes;
        let header = SectionHeader::from_bytes(&self.start::<SECTION_HEADER_BYTES>()?)?;
        if header.sequence != self.sequence {
            return Err(SectionError::Sequence {
                expected: self.sequence,
                found: header.sequence,
            });
        }
        self.sequence = self.sequence.wrapping_add(1);
        match header.kind {
            SectionKind::Heartbeat => Ok(None),
            SectionKind::Abort => {
                let reason = self.payload(&header)?;
                let reason = String::from_utf8_lossy(&reason).into_owned();
                Err(SectionError::Aborted(reason))
            }
            _ => Ok(Some(header)),
        }
    }

    /// Receives the whole payload of a section. Its length is at most what its kind allows.
    pub(crate) fn payload(&mut self, header: &SectionHeader) -> Result<Vec<u8>, SectionError> {
        let mut payload = Vec::new();
        self.payload_into(header, &mut payload)?;
        Ok(payload)
    }

    /// As [`SectionReader::payload`], but into a buffer that can be used again.
    pub(crate) fn payload_into(
        &mut self,
        header: &SectionHeader,
        payload: &mut Vec<u8>,
    ) -> Result<(), SectionError> {
        // Fits into memory: it is at most `SectionKind::max_length`.
        payload.resize(header.length as usize, 0);
        self.exact(payload)?;
        check(header, crc32fast::hash(payload))
    }

    /// As [`SectionReader::payload`], with the descriptors that travel with it, at most `most`.
    pub(crate) fn payload_with_files(
        &mut self,
        header: &SectionHeader,
        most: usize,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), SectionError> {
        // As above.
        let mut payload = vec![0; header.length as usize];
        let mut files = Vec::new();
        self.input.read_with_files(&mut payload, &mut files, most)?;
        self.bytes += header.length;
        check(header, crc32fast::hash(&payload))?;
        Ok((payload, files))
    }

    fn exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Waits for the other side's reason to give up, or its end. Other sections are skipped.
    pub(crate) fn reason(&mut self) -> Result<(), SectionError> {
        loop {
            let header = self.header()?;
            self.payload(&header)?;
        }
    }

    /// Waits for an empty section of `kind`.
    pub(crate) fn expect(
        &mut self,
        kind: SectionKind,
        expected: &'static str,
    ) -> Result<(), SectionError> {
        self.expect_payload(kind, expected).map(|_| ())
    }

    /// As [`SectionReader::expect`], for a section that is not empty. Returns its payload.
    pub(crate) fn expect_payload(
        &mut self,
        kind: SectionKind,
        expected: &'static str,
    ) -> Result<Vec<u8>, SectionError> {
        let header = self.header()?;
        if header.kind != kind {
            let found = header.kind;
            return Err(SectionError::Unexpected { found, expected });
        }
        self.payload(&header)
    }

    /// An error if the other side has given up or hung up, or has been silent for too long. Waits only if a section has
    /// arrived in part.
    pub(crate) fn check_peer(&mut self) -> Result<(), SectionError> {
        while self.input.is_ready() {
            if let Some(header) = self.header_or_heartbeat()? {
                let (found, expected) = (header.kind, "nothing");
                return Err(SectionError::Unexpected { found, expected });
            }
        }
        Ok(self.input.check_heard()?)
    }

    /// Whether the next section has arrived, at least in part.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.input.is_ready()
    }

    /// An error if the other side has been silent for too long.
    pub(crate) fn check_heard(&self) -> io::Result<()> {
        self.input.check_heard()
    }

    /// Reads and discards what has arrived. Does not wait.
    pub(crate) fn forget_received(&mut self) {
        self.input.forget_received();
    }

    /// Reads and discards what still arrives, for at most `time`.
    pub(crate) fn drain(&mut self, time: Duration) {
        self.input.drain(time);
    }
}

/// Compares the checksum in `header` with the payload's.
fn check(header: &SectionHeader, crc: u32) -> Result<(), SectionError> {
    if crc == header.payload_crc {
        Ok(())
    } else {
        Err(SectionError::Checksum {
            kind: header.kind,
            sequence: header.sequence,
        })
    }
}

#[cfg(test)]
mod tests;
