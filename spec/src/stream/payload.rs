// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The payloads of sections: runs of pages, and totals.

use super::{LENT_BYTES, MAX_SECTION_PAGES, RUN_BYTES, SectionKind, StreamError};
use crate::{PageRange, wire};

/// Writes `range` as one run of a table: `first u64, count u64`.
pub fn run_to_bytes(range: PageRange) -> [u8; RUN_BYTES] {
    let mut bytes = [0; RUN_BYTES];
    wire::put(&mut bytes, 0, &range.first().to_le_bytes());
    wire::put(&mut bytes, 8, &range.count().to_le_bytes());
    bytes
}

/// Reads the runs of a table; `kind` is for the error.
///
/// # Errors
/// Yields [`StreamError::Malformed`] for a run that is empty or overflows, or a table of another length
/// than whole runs.
pub fn runs(
    kind: SectionKind,
    table: &[u8],
) -> impl Iterator<Item = Result<PageRange, StreamError>> {
    table.chunks(RUN_BYTES).map(move |run| {
        if run.len() != RUN_BYTES {
            return Err(StreamError::Malformed(kind));
        }
        PageRange::new(wire::u64_at(run, 0), wire::u64_at(run, 8))
            .ok_or(StreamError::Malformed(kind))
    })
}

/// Writes a region of lent memory as one entry of its table: where in its file it starts, `offset u64`. The regions are
/// those of [`SectionKind::Layout`], in their order.
pub fn lent_to_bytes(offset: u64) -> [u8; LENT_BYTES] {
    offset.to_le_bytes()
}

/// Reads the offsets of `regions` regions of lent memory.
///
/// # Errors
/// [`StreamError::Malformed`] for a table of another length.
pub fn lent(table: &[u8], regions: usize) -> Result<impl Iterator<Item = u64>, StreamError> {
    let (offsets, rest) = table.as_chunks::<LENT_BYTES>();
    if !rest.is_empty() || offsets.len() != regions {
        return Err(StreamError::Malformed(SectionKind::Memory));
    }
    Ok(offsets.iter().map(|offset| u64::from_le_bytes(*offset)))
}

/// The start of a [`SectionKind::Pages`] payload: `runs u32, pages u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesPrefix {
    /// Runs in the table that follows.
    pub runs: u32,
    /// Pages in all runs.
    pub pages: u32,
}

impl PagesPrefix {
    /// Bytes of the prefix.
    pub const BYTES: usize = 8;

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        wire::put(&mut bytes, 0, &self.runs.to_le_bytes());
        wire::put(&mut bytes, 4, &self.pages.to_le_bytes());
        bytes
    }

    /// Reads a prefix and checks it against the section's length.
    ///
    /// # Errors
    /// [`StreamError::Malformed`] if table and pages do not fill the section exactly.
    pub fn from_bytes(bytes: &[u8; Self::BYTES], length: u64) -> Result<Self, StreamError> {
        let prefix = Self {
            runs: wire::u32_at(bytes, 0),
            pages: wire::u32_at(bytes, 4),
        };
        let expected = Self::BYTES as u64
            + u64::from(prefix.runs) * RUN_BYTES as u64
            + u64::from(prefix.pages) * crate::PAGE_SIZE;
        let fits = prefix.runs >= 1
            && prefix.runs <= prefix.pages
            && u64::from(prefix.pages) <= MAX_SECTION_PAGES
            && expected == length;
        if fits {
            Ok(prefix)
        } else {
            Err(StreamError::Malformed(SectionKind::Pages))
        }
    }

    /// Bytes of the whole payload.
    pub const fn payload_bytes(self) -> u64 {
        Self::BYTES as u64
            + self.runs as u64 * RUN_BYTES as u64
            + self.pages as u64 * crate::PAGE_SIZE
    }
}

/// Totals of what the source sent. The destination compares them with what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages sent with content. A page that was sent twice counts twice.
    pub pages_sent: u64,
    /// Pages in zero runs.
    pub pages_zero: u64,
    /// Pages in discard runs.
    pub pages_discarded: u64,
    /// Rounds.
    pub rounds: u64,
    /// Bytes before the commit section.
    pub bytes: u64,
}

impl Totals {
    /// Bytes on the wire.
    pub const BYTES: usize = 40;

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields = [
            self.pages_sent,
            self.pages_zero,
            self.pages_discarded,
            self.rounds,
            self.bytes,
        ];
        for (index, field) in fields.iter().enumerate() {
            wire::put(&mut bytes, index * 8, &field.to_le_bytes());
        }
        bytes
    }

    /// Reads totals.
    ///
    /// # Errors
    /// [`StreamError::Malformed`] for a payload of another length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StreamError> {
        if bytes.len() != Self::BYTES {
            return Err(StreamError::Malformed(SectionKind::Commit));
        }
        Ok(Self {
            pages_sent: wire::u64_at(bytes, 0),
            pages_zero: wire::u64_at(bytes, 8),
            pages_discarded: wire::u64_at(bytes, 16),
            rounds: wire::u64_at(bytes, 24),
            bytes: wire::u64_at(bytes, 32),
        })
    }
}
