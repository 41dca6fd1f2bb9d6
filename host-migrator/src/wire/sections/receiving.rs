// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Receives sections: their numbers and checksums are checked, and their bytes counted.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use spec::stream::{SECTION_HEADER_BYTES, SectionHeader, SectionKind};

use super::error::SectionError;
use crate::wire::reader::Reader;
use crate::wire::stop::StopFlag;

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
