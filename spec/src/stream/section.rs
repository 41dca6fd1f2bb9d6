// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header before every payload.

use super::{
    CompressedPrefix, LENT_BYTES, MAX_DESCRIPTION, MAX_PLAIN_PAYLOAD, MAX_REGIONS,
    MAX_REQUEST_RUNS, MAX_SECTION_PAGES, MAX_SECTION_RUNS, Nonce, RUN_BYTES, SECTION_HEADER_BYTES,
    StreamError, Totals, check_seal,
};
use crate::wire;

/// The kind of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum SectionKind {
    /// Source: the guest's memory regions, `{gpa u64, length u64}` each.
    Layout = 1,
    /// Source: `runs u32, pages u32`, a table of runs, then the pages' bytes in the table's order.
    Pages = 2,
    /// Source: runs of pages that are zero now and were sent with content before.
    Zero = 3,
    /// Source: runs of pages that the guest gave up after they had been sent: they read as zero.
    Discard = 4,
    /// Source: a round has ended; empty. The header's round number is that round. The destination answers
    /// [`SectionKind::RoundReceived`].
    RoundEnd = 5,
    /// Source: one part of the state of vCPUs and devices: a [`StatePrefix`](super::StatePrefix), its name (UTF-8), and bytes in
    /// the VMM's own format.
    MachineState = 6,
    /// Source: [`Totals`]. Nothing but [`SectionKind::HandOver`] or [`SectionKind::Abort`] follows.
    Commit = 7,
    /// Source: the source gives the guest up for good; the destination may run it. Empty.
    HandOver = 8,
    /// Either side: the migration is aborted; the payload says why (UTF-8).
    Abort = 9,
    /// Either side: the sender is alive and has nothing else to send; empty. It may come between any two sections. Its
    /// round number has no meaning.
    Heartbeat = 10,
    /// Source: what the destination's machine must have for this guest, in the VMM's own format. Follows
    /// [`SectionKind::Layout`]; the destination compares it before it accepts.
    Description = 11,
    /// Source: everything that was sent on all channels is to be in memory before anything that follows; empty. It is sent
    /// on every channel and on the control connection, and answered there with [`SectionKind::Drained`].
    Drain = 12,
    /// Source: as [`SectionKind::Pages`], compressed: a [`CompressedPrefix`], a table of runs, and the pages' compressed bytes.
    CompressedPages = 13,
    /// Source: the memory itself, in a local hand-over: a table of [`lent_to_bytes`](super::lent_to_bytes), and for each region
    /// the descriptor of its memory file, which travels with the table's bytes. It follows [`SectionKind::Accept`]; the
    /// destination answers [`SectionKind::Mapped`].
    Memory = 14,
    /// Source: runs of pages whose content comes after the hand-over, on the lanes (`postcopy.md`). They follow the last round's pages.
    Promised = 15,
    /// Destination: memory layout and machine fit; the payload is the [`Nonce`](super::Nonce) with which channels join.
    Accept = 32,
    /// Destination: everything has arrived, the totals agree, the machine is loaded; empty.
    Ready = 33,
    /// Destination: the guest runs here; empty.
    Running = 34,
    /// Destination: everything up to a [`SectionKind::RoundEnd`] is in memory; empty.
    RoundReceived = 35,
    /// Destination: all channels have joined the session; empty.
    Joined = 36,
    /// Destination: everything up to a [`SectionKind::Drain`] is in memory; empty.
    Drained = 37,
    /// Destination: the lent memory is mapped, and was not changed; empty.
    Mapped = 38,
    /// Destination, on the first lane: runs of promised pages that somebody waits for.
    Request = 39,
    /// Destination, on the first lane: nothing is missing any more; empty.
    Complete = 40,
    /// Destination, on the first lane: runs of promised pages that have not come, when lanes join again. The last section of them is empty.
    Missing = 41,
    /// Destination, on the other lanes: the next of the sections that have come on this lane is in memory; empty.
    Placed = 42,
}

impl SectionKind {
    /// Reads a wire value.
    ///
    /// # Errors
    /// [`StreamError::Kind`] for an unknown number.
    pub const fn from_raw(raw: u16) -> Result<Self, StreamError> {
        Ok(match raw {
            1 => Self::Layout,
            2 => Self::Pages,
            3 => Self::Zero,
            4 => Self::Discard,
            5 => Self::RoundEnd,
            6 => Self::MachineState,
            7 => Self::Commit,
            8 => Self::HandOver,
            9 => Self::Abort,
            10 => Self::Heartbeat,
            11 => Self::Description,
            12 => Self::Drain,
            13 => Self::CompressedPages,
            14 => Self::Memory,
            15 => Self::Promised,
            32 => Self::Accept,
            33 => Self::Ready,
            34 => Self::Running,
            35 => Self::RoundReceived,
            36 => Self::Joined,
            37 => Self::Drained,
            38 => Self::Mapped,
            39 => Self::Request,
            40 => Self::Complete,
            41 => Self::Missing,
            42 => Self::Placed,
            _ => return Err(StreamError::Kind(raw)),
        })
    }

    /// The most payload a section of this kind may have.
    pub const fn max_length(self) -> u64 {
        match self {
            Self::Layout => MAX_REGIONS as u64 * 16,
            Self::Memory => (MAX_REGIONS as usize * LENT_BYTES) as u64,
            Self::Pages => {
                8 + MAX_SECTION_PAGES * RUN_BYTES as u64 + MAX_SECTION_PAGES * crate::PAGE_SIZE
            }
            Self::CompressedPages => CompressedPrefix::MAX_PAYLOAD,
            Self::Zero | Self::Discard | Self::Promised | Self::Missing => {
                (MAX_SECTION_RUNS * RUN_BYTES) as u64
            }
            Self::Request => (MAX_REQUEST_RUNS * RUN_BYTES) as u64,
            Self::MachineState => MAX_PLAIN_PAYLOAD,
            Self::Description => MAX_DESCRIPTION,
            Self::Commit => Totals::BYTES as u64,
            Self::Abort => 4096,
            Self::Accept => Nonce::BYTES as u64,
            Self::RoundEnd
            | Self::HandOver
            | Self::Heartbeat
            | Self::Drain
            | Self::Ready
            | Self::Running
            | Self::RoundReceived
            | Self::Joined
            | Self::Drained
            | Self::Mapped
            | Self::Complete
            | Self::Placed => 0,
        }
    }
}

/// Before every payload: `kind u16, zero u16, sequence u32, round u32, payload crc u32, length u64,
/// zero ..36, header crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionHeader {
    /// What the payload is.
    pub kind: SectionKind,
    /// Counts the sender's sections from 0, so that a lost, repeated or reordered section is noticed.
    pub sequence: u32,
    /// The round that the section belongs to, from 1.
    pub round: u32,
    /// Bytes of payload.
    pub length: u64,
    /// CRC-32 of the payload.
    pub payload_crc: u32,
}

impl SectionHeader {
    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; SECTION_HEADER_BYTES] {
        let mut bytes = [0; SECTION_HEADER_BYTES];
        wire::put(&mut bytes, 0, &(self.kind as u16).to_le_bytes());
        wire::put(&mut bytes, 4, &self.sequence.to_le_bytes());
        wire::put(&mut bytes, 8, &self.round.to_le_bytes());
        wire::put(&mut bytes, 12, &self.payload_crc.to_le_bytes());
        wire::put(&mut bytes, 16, &self.length.to_le_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Reads a section header.
    ///
    /// # Errors
    /// [`StreamError`] for a wrong checksum, an unknown kind or a length its kind cannot have.
    pub fn from_bytes(bytes: &[u8; SECTION_HEADER_BYTES]) -> Result<Self, StreamError> {
        check_seal(bytes)?;
        let kind = SectionKind::from_raw(wire::u16_at(bytes, 0))?;
        let length = wire::u64_at(bytes, 16);
        if length > kind.max_length() {
            return Err(StreamError::TooLong { kind, length });
        }
        Ok(Self {
            kind,
            sequence: wire::u32_at(bytes, 4),
            round: wire::u32_at(bytes, 8),
            payload_crc: wire::u32_at(bytes, 12),
            length,
        })
    }
}
