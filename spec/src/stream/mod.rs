// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration stream between source and destination. `migration-stream.md` has the drawings.
//!
//! The destination speaks first ([`Greeting`]); the source answers with a [`StreamHeader`] that repeats
//! the session number, so a recorded stream cannot be replayed. Then both sides send sections: a
//! [`SectionHeader`] and a payload. Every section has a sequence number, a length, a checksum of its
//! header and one of its payload (CRC-32, IEEE). All numbers are little-endian.
//!
//! | module | what it is |
//! |---|---|
//! | `greeting` | the first bytes of each side |
//! | `channel` | the first bytes of a channel that joins |
//! | `section` | the header of every section |
//! | `payload` | the payloads of sections |
//! | `compressed` | the payload of a section of compressed pages |
//! | `machine_state` | the payload of a section of the machine's state |

mod channel;
mod compressed;
mod greeting;
mod machine_state;
mod payload;
mod section;
#[cfg(test)]
mod tests;

pub use channel::{ChannelHeader, Introduction, Nonce};
pub use compressed::{CompressedPrefix, CompressionMethod};
pub use greeting::{Greeting, StreamHeader};
pub use machine_state::{StatePrefix, state_from_bytes};
pub use payload::{PagesPrefix, Totals, lent, lent_to_bytes, run_to_bytes, runs};
pub use section::{SectionHeader, SectionKind};

use crate::wire;

/// The first eight bytes of [`Greeting`] and [`StreamHeader`].
pub const MAGIC: [u8; 8] = *b"LACUNA\r\n";
/// The stream's version. A reader accepts no other.
pub const VERSION: u32 = 5;
/// The first eight bytes of a [`ChannelHeader`].
pub const CHANNEL_MAGIC: [u8; 8] = *b"LACUCH\r\n";
/// Bytes of a [`Greeting`].
pub const GREETING_BYTES: usize = 32;
/// Bytes of a [`StreamHeader`] and of a [`ChannelHeader`].
pub const STREAM_HEADER_BYTES: usize = 64;
/// Bytes of a [`SectionHeader`].
pub const SECTION_HEADER_BYTES: usize = 40;
/// Bytes of one run in the tables of page sections.
pub const RUN_BYTES: usize = 16;
/// Bytes of one region in the table of [`SectionKind::Memory`].
pub const LENT_BYTES: usize = 8;
/// The most pages that one [`SectionKind::Pages`] or [`SectionKind::CompressedPages`] section carries (1 MiB of them).
pub const MAX_SECTION_PAGES: u64 = 256;
/// The most runs in one section's table.
pub const MAX_SECTION_RUNS: usize = 4096;
/// The most runs in one [`SectionKind::Request`].
pub const MAX_REQUEST_RUNS: usize = 64;
/// The most payload of a section without pages. It bounds what a reader allocates.
pub const MAX_PLAIN_PAYLOAD: u64 = 16 << 20;
/// The most bytes of a machine's description ([`SectionKind::Description`]).
pub const MAX_DESCRIPTION: u64 = 1 << 20;
/// The most sections of a machine's state ([`SectionKind::MachineState`]).
pub const MAX_STATE_SECTIONS: usize = 1024;
/// The most bytes of all sections of a machine's state together, without names and versions.
pub const MAX_STATE_BYTES: u64 = 64 << 20;
/// The most bytes of the name of a section of a machine's state.
pub const MAX_STATE_NAME: usize = 255;
/// The most channels of a migration.
pub const MAX_CHANNELS: u32 = 128;
/// The most lanes of a postcopy: one for what is asked for, and those for the rest.
pub const MAX_LANES: u32 = 33;
/// The most memory regions of a guest.
pub const MAX_REGIONS: u32 = 512;

/// The bytes are not a valid stream.
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
    /// A compression method that does not exist.
    Method(u32),
    /// A section longer than its kind may be.
    TooLong {
        /// The section's kind.
        kind: SectionKind,
        /// Its payload's length.
        length: u64,
    },
    /// A payload that is invalid for its kind.
    Malformed(SectionKind),
    /// A header field with an invalid value; names the field.
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
            Self::Method(method) => write!(f, "unknown compression method {method}"),
            Self::TooLong { kind, length } => {
                write!(f, "a {kind:?} section of {length} bytes is too long")
            }
            Self::Malformed(kind) => write!(f, "the payload of a {kind:?} section is invalid"),
            Self::Field(name) => write!(f, "invalid value in header field {name}"),
        }
    }
}

impl core::error::Error for StreamError {}

fn check_seal(bytes: &[u8]) -> Result<(), StreamError> {
    if wire::is_sealed(bytes) {
        Ok(())
    } else {
        Err(StreamError::HeaderChecksum)
    }
}
