// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration stream: what source and destination send each other. `migration-stream.md` draws it.
//!
//! The destination speaks first ([`Greeting`]); the source answers with a [`StreamHeader`] that repeats
//! the session number, so a recorded stream cannot be replayed. Then both sides send sections: a
//! [`SectionHeader`] and a payload. Every section has a sequence number, a length, a checksum of its
//! header and one of its payload (CRC-32, IEEE). All numbers are little-endian.

use crate::PageRange;
use crate::wire;

/// The first eight bytes of [`Greeting`] and [`StreamHeader`].
pub const MAGIC: [u8; 8] = *b"LACUNA\r\n";
/// The stream's version. A reader takes no other.
pub const VERSION: u32 = 1;
/// Bytes of a [`Greeting`].
pub const GREETING_BYTES: usize = 32;
/// Bytes of a [`StreamHeader`].
pub const STREAM_HEADER_BYTES: usize = 64;
/// Bytes of a [`SectionHeader`].
pub const SECTION_HEADER_BYTES: usize = 40;
/// Bytes of one run in the tables of page sections.
pub const RUN_BYTES: usize = 16;
/// The most pages that one [`SectionKind::Pages`] section carries (1 MiB of them).
pub const MAX_SECTION_PAGES: u64 = 256;
/// The most runs in one section's table.
pub const MAX_SECTION_RUNS: usize = 4096;
/// The most payload of a section that is not pages: a bound for what a reader allocates.
pub const MAX_PLAIN_PAYLOAD: u64 = 16 << 20;
/// The most memory regions of a guest.
pub const MAX_REGIONS: u32 = 512;

/// Bytes that are no stream of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// Does not start with [`MAGIC`].
    Magic,
    /// Another version than [`VERSION`].
    Version(u32),
    /// A header's checksum is wrong.
    HeaderChecksum,
    /// A section kind that does not exist.
    Kind(u16),
    /// A section longer than its kind may be.
    TooLong {
        /// The section's kind.
        kind: SectionKind,
        /// Its payload's length.
        length: u64,
    },
    /// A payload that its kind cannot have.
    Malformed(SectionKind),
    /// A header field with an impossible value; names the field.
    Field(&'static str),
}

impl core::fmt::Display for StreamError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic => f.write_str("not a Lacuna migration stream"),
            Self::Version(found) => {
                write!(
                    f,
                    "migration stream version {found}, this build knows version {VERSION}"
                )
            }
            Self::HeaderChecksum => f.write_str("a header's checksum is wrong"),
            Self::Kind(kind) => write!(f, "unknown section kind {kind}"),
            Self::TooLong { kind, length } => {
                write!(f, "a {kind:?} section of {length} bytes is too long")
            }
            Self::Malformed(kind) => write!(f, "the payload of a {kind:?} section makes no sense"),
            Self::Field(name) => write!(f, "impossible value in header field {name}"),
        }
    }
}

impl core::error::Error for StreamError {}

/// The destination's first bytes: `magic, version u32, zero u32, session u64, zero u32, crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// A number nobody can guess, new for each session.
    pub session: u64,
}

impl Greeting {
    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        wire::put(&mut bytes, 0, &MAGIC);
        wire::put(&mut bytes, 8, &VERSION.to_le_bytes());
        wire::put(&mut bytes, 16, &self.session.to_le_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Reads a greeting.
    ///
    /// # Errors
    /// [`StreamError`] if it is none, or of another version.
    pub fn from_bytes(bytes: &[u8; GREETING_BYTES]) -> Result<Self, StreamError> {
        check_start(bytes)?;
        Ok(Self {
            session: wire::u64_at(bytes, 16),
        })
    }
}

/// The source's first bytes: `magic, version u32, page size u32, session u64, ram bytes u64,
/// regions u32, zero ..60, crc u32`. The first section is [`SectionKind::Layout`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// The number from the destination's [`Greeting`].
    pub session: u64,
    /// Bytes of guest memory.
    pub ram_bytes: u64,
    /// Regions of guest memory.
    pub regions: u32,
}

impl StreamHeader {
    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; STREAM_HEADER_BYTES] {
        let mut bytes = [0; STREAM_HEADER_BYTES];
        wire::put(&mut bytes, 0, &MAGIC);
        wire::put(&mut bytes, 8, &VERSION.to_le_bytes());
        wire::put(&mut bytes, 12, &(crate::PAGE_SIZE as u32).to_le_bytes());
        wire::put(&mut bytes, 16, &self.session.to_le_bytes());
        wire::put(&mut bytes, 24, &self.ram_bytes.to_le_bytes());
        wire::put(&mut bytes, 32, &self.regions.to_le_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Reads a stream header.
    ///
    /// # Errors
    /// [`StreamError`] if it is none, of another version, or has an impossible field.
    pub fn from_bytes(bytes: &[u8; STREAM_HEADER_BYTES]) -> Result<Self, StreamError> {
        check_start(bytes)?;
        if u64::from(wire::u32_at(bytes, 12)) != crate::PAGE_SIZE {
            return Err(StreamError::Field("page size"));
        }
        let header = Self {
            session: wire::u64_at(bytes, 16),
            ram_bytes: wire::u64_at(bytes, 24),
            regions: wire::u32_at(bytes, 32),
        };
        if header.regions == 0 || header.regions > MAX_REGIONS {
            return Err(StreamError::Field("regions"));
        }
        Ok(header)
    }
}

/// What a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum SectionKind {
    /// Source: the guest's memory regions, `{gpa u64, length u64}` each.
    Layout = 1,
    /// Source: `runs u32, pages u32`, a table of runs, then the pages' bytes in the table's order.
    Pages = 2,
    /// Source: runs of pages that are zero now and were not before.
    Zero = 3,
    /// Source: runs of pages that the guest gave up after they had been sent: they read as zero.
    Discard = 4,
    /// Source: a round has ended; empty. The header's round number is that round. The destination answers
    /// [`SectionKind::RoundReceived`].
    RoundEnd = 5,
    /// Source: the state of vCPUs and devices, for the VMM to read.
    MachineState = 6,
    /// Source: [`Totals`]. Nothing but [`SectionKind::HandOver`] or [`SectionKind::Abort`] follows.
    Commit = 7,
    /// Source: the source gives the guest up for good; the destination may run it. Empty.
    HandOver = 8,
    /// Either side: the migration is off; the payload says why (UTF-8).
    Abort = 9,
    /// Destination: layout accepted; empty.
    Accept = 32,
    /// Destination: everything has arrived, the totals agree, the machine is loaded; empty.
    Ready = 33,
    /// Destination: the guest runs here; empty.
    Running = 34,
    /// Destination: everything up to a [`SectionKind::RoundEnd`] is in memory; empty.
    RoundReceived = 35,
}

impl SectionKind {
    /// Reads a wire value.
    ///
    /// # Errors
    /// [`StreamError::Kind`] for a number that is no kind.
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
            32 => Self::Accept,
            33 => Self::Ready,
            34 => Self::Running,
            35 => Self::RoundReceived,
            _ => return Err(StreamError::Kind(raw)),
        })
    }

    /// The most payload a section of this kind may have.
    pub const fn max_length(self) -> u64 {
        match self {
            Self::Layout => MAX_REGIONS as u64 * 16,
            Self::Pages => {
                8 + MAX_SECTION_PAGES * RUN_BYTES as u64 + MAX_SECTION_PAGES * crate::PAGE_SIZE
            }
            Self::Zero | Self::Discard => (MAX_SECTION_RUNS * RUN_BYTES) as u64,
            Self::MachineState => MAX_PLAIN_PAYLOAD,
            Self::Commit => Totals::BYTES as u64,
            Self::Abort => 4096,
            Self::RoundEnd
            | Self::HandOver
            | Self::Accept
            | Self::Ready
            | Self::Running
            | Self::RoundReceived => 0,
        }
    }
}

/// Before every payload: `kind u16, zero u16, sequence u32, round u32, payload crc u32, length u64,
/// zero ..36, header crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionHeader {
    /// What the payload is.
    pub kind: SectionKind,
    /// Counts the sender's sections from 0: none lost, none twice, none in another order.
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

/// What the source sent in all: the destination compares it with what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages with content, each sending counted.
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

fn check_seal(bytes: &[u8]) -> Result<(), StreamError> {
    if wire::is_sealed(bytes) {
        Ok(())
    } else {
        Err(StreamError::HeaderChecksum)
    }
}

/// Magic and version come before the checksum, so that a stranger's bytes or another version get the
/// error that helps.
fn check_start(bytes: &[u8]) -> Result<(), StreamError> {
    if bytes[..8] != MAGIC {
        return Err(StreamError::Magic);
    }
    let version = wire::u32_at(bytes, 8);
    if version != VERSION {
        return Err(StreamError::Version(version));
    }
    check_seal(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn section() -> SectionHeader {
        SectionHeader {
            kind: SectionKind::Pages,
            sequence: 7,
            round: 2,
            length: 4120,
            payload_crc: 99,
        }
    }

    #[test]
    fn headers_survive_a_round_trip() {
        let greeting = Greeting {
            session: 0x1234_5678_9abc_def0,
        };
        assert_eq!(Greeting::from_bytes(&greeting.to_bytes()), Ok(greeting));
        let header = StreamHeader {
            session: 5,
            ram_bytes: 2 << 30,
            regions: 2,
        };
        assert_eq!(StreamHeader::from_bytes(&header.to_bytes()), Ok(header));
        assert_eq!(
            SectionHeader::from_bytes(&section().to_bytes()),
            Ok(section())
        );
        let totals = Totals {
            pages_sent: 1,
            pages_zero: 2,
            pages_discarded: 3,
            rounds: 4,
            bytes: 5,
        };
        assert_eq!(Totals::from_bytes(&totals.to_bytes()), Ok(totals));
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_header_is_found() {
        let good = section().to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SectionHeader::from_bytes(&bad).is_err(), "bit {bit}");
        }
        let good = StreamHeader {
            session: 5,
            ram_bytes: 2 << 30,
            regions: 2,
        }
        .to_bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(StreamHeader::from_bytes(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_named_in_the_error() {
        let mut bytes = Greeting { session: 1 }.to_bytes();
        bytes[8] = 2;
        assert_eq!(Greeting::from_bytes(&bytes), Err(StreamError::Version(2)));
    }

    #[test]
    fn a_length_that_the_kind_cannot_have_is_refused() {
        let long = SectionHeader {
            kind: SectionKind::Accept,
            length: 1,
            ..section()
        };
        assert_eq!(
            SectionHeader::from_bytes(&long.to_bytes()),
            Err(StreamError::TooLong {
                kind: SectionKind::Accept,
                length: 1
            })
        );
    }

    proptest! {
        #[test]
        fn a_prefix_is_taken_only_if_it_fills_the_section(runs in 0u32..300, pages in 0u32..300, length in 0u64..2_000_000) {
            let prefix = PagesPrefix { runs, pages };
            let good = runs >= 1 && runs <= pages && pages <= 256 && prefix.payload_bytes() == length;
            prop_assert_eq!(PagesPrefix::from_bytes(&prefix.to_bytes(), length).is_ok(), good);
            let exact = prefix.payload_bytes();
            let good = runs >= 1 && runs <= pages && pages <= 256;
            prop_assert_eq!(PagesPrefix::from_bytes(&prefix.to_bytes(), exact).is_ok(), good);
        }

        #[test]
        fn tables_of_any_bytes_give_ranges_or_errors(table in proptest::collection::vec(any::<u8>(), 0..100)) {
            for run in runs(SectionKind::Zero, &table).flatten() {
                prop_assert!(run.count() > 0 && run.end() >= run.first());
            }
        }
    }
}
