// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sections of the migration stream on a channel: numbered, summed and counted.

use std::io::{self, IoSlice};
use std::time::Duration;

use spec::stream::{SECTION_HEADER_BYTES, SectionHeader, SectionKind, StreamError};

use super::channel::WriteError;
use super::{Reader, Writer};

/// A stream that broke off, or that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum SectionError {
    /// The connection failed.
    #[error("connection to the other side: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are no migration stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A section was lost, repeated or came out of order.
    #[error("section {found} arrived where section {expected} was due")]
    Sequence {
        /// The number that was due.
        expected: u32,
        /// The number that came.
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
    /// A section that has no place here.
    #[error("a {found:?} section arrived where {expected} was due")]
    Unexpected {
        /// What came.
        found: SectionKind,
        /// What was due.
        expected: &'static str,
    },
    /// The other side ended the migration.
    #[error("the other side gave up: {0}")]
    Aborted(String),
}

/// Sends sections.
#[derive(Debug)]
pub(crate) struct SectionWriter {
    out: Writer,
    sequence: u32,
    round: u32,
    bytes: u64,
    /// A section has been sent in part: nothing that follows would be understood.
    broken: bool,
}

impl SectionWriter {
    pub(crate) fn new(out: Writer) -> Self {
        Self {
            out,
            sequence: 0,
            round: 1,
            bytes: 0,
            broken: false,
        }
    }

    /// Bytes sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long the peer may take nothing from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.out.set_patience(patience);
    }

    /// The round that the next sections belong to.
    pub(crate) fn set_round(&mut self, round: u32) {
        self.round = round;
    }

    /// Sends bytes that are not in a section: a greeting or a stream header.
    pub(crate) fn start(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send(&mut [IoSlice::new(bytes)])
            .map_err(|error| error.source)
    }

    /// Sends one section, whose payload is `parts` in turn.
    pub(crate) fn section<const N: usize>(
        &mut self,
        kind: SectionKind,
        parts: [&[u8]; N],
    ) -> io::Result<()> {
        self.section_or_count(kind, parts)
            .map_err(|error| error.source)
    }

    /// As [`SectionWriter::section`]; the error says how many bytes left this side.
    pub(crate) fn section_or_count<const N: usize>(
        &mut self,
        kind: SectionKind,
        parts: [&[u8]; N],
    ) -> Result<(), WriteError> {
        let mut hasher = crc32fast::Hasher::new();
        let mut length = 0;
        for part in parts {
            hasher.update(part);
            length += part.len() as u64;
        }
        let header = SectionHeader {
            kind,
            sequence: self.sequence,
            round: self.round,
            length,
            payload_crc: hasher.finalize(),
        }
        .to_bytes();
        self.sequence = self.sequence.wrapping_add(1);
        let mut slices = [IoSlice::new(&[]); 4];
        slices[0] = IoSlice::new(&header);
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        self.send(&mut slices[..=N])
    }

    /// Tells the other side that the migration is off, and why, if it can still be told.
    pub(crate) fn abort(&mut self, reason: &str) {
        if self.broken {
            return;
        }
        let limit = SectionKind::Abort.max_length() as usize;
        let reason = &reason.as_bytes()[..reason.len().min(limit)];
        // The connection may be why the migration is off.
        let _ = self.section(SectionKind::Abort, [reason]);
    }

    /// Nothing more is sent.
    pub(crate) fn finish(&mut self) {
        self.out.finish();
    }

    fn send(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), WriteError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let result = self.out.write_all(parts);
        let written = result
            .as_ref()
            .map_or_else(|error| error.written, |()| length);
        self.bytes += written as u64;
        self.broken |= written != length && written != 0;
        result
    }
}

/// Receives sections.
#[derive(Debug)]
pub(crate) struct SectionReader {
    input: Reader,
    sequence: u32,
    bytes: u64,
}

impl SectionReader {
    pub(crate) fn new(input: Reader) -> Self {
        Self {
            input,
            sequence: 0,
            bytes: 0,
        }
    }

    /// How long the peer may give nothing from now on.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.input.set_patience(patience);
    }

    /// Bytes received so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Receives bytes that are not in a section.
    pub(crate) fn start<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives a section's header. An [`SectionKind::Abort`] section comes back as an error.
    pub(crate) fn header(&mut self) -> Result<SectionHeader, SectionError> {
        let header = SectionHeader::from_bytes(&self.start::<SECTION_HEADER_BYTES>()?)?;
        if header.sequence != self.sequence {
            return Err(SectionError::Sequence {
                expected: self.sequence,
                found: header.sequence,
            });
        }
        self.sequence = self.sequence.wrapping_add(1);
        if header.kind == SectionKind::Abort {
            let reason = self.payload(&header)?;
            return Err(SectionError::Aborted(
                String::from_utf8_lossy(&reason).into_owned(),
            ));
        }
        Ok(header)
    }

    /// Receives the whole payload of a section, which its kind has bounded.
    pub(crate) fn payload(&mut self, header: &SectionHeader) -> Result<Vec<u8>, SectionError> {
        let mut payload = Vec::new();
        self.payload_into(header, &mut payload)?;
        Ok(payload)
    }

    /// As [`SectionReader::payload`], into a buffer that is used again.
    pub(crate) fn payload_into(
        &mut self,
        header: &SectionHeader,
        payload: &mut Vec<u8>,
    ) -> Result<(), SectionError> {
        // The length fits memory: it is at most `SectionKind::max_length`.
        payload.resize(header.length as usize, 0);
        self.exact(payload)?;
        check(header, crc32fast::hash(payload))
    }

    fn exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Waits for an empty section of `kind`.
    pub(crate) fn expect(
        &mut self,
        kind: SectionKind,
        expected: &'static str,
    ) -> Result<(), SectionError> {
        let header = self.header()?;
        if header.kind != kind {
            let found = header.kind;
            return Err(SectionError::Unexpected { found, expected });
        }
        self.payload(&header).map(|_| ())
    }

    /// An error if the other side has given up or hung up. Does not wait, unless something came.
    pub(crate) fn check_peer(&mut self) -> Result<(), SectionError> {
        if !self.input.is_ready() {
            return Ok(());
        }
        let found = self.header()?.kind;
        let expected = "nothing";
        Err(SectionError::Unexpected { found, expected })
    }

    /// Reads and forgets what still comes, for at most `time`.
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
