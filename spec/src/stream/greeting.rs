// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first bytes of each side of a stream.

use super::{
    GREETING_BYTES, MAGIC, MAX_CHANNELS, MAX_LANES, MAX_REGIONS, STREAM_HEADER_BYTES, StreamError,
    VERSION, check_seal,
};
use crate::wire;

/// The destination's first bytes: `magic, version u32, zero u32, session u64, zero u32, crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// A random number, new for each session.
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
    /// [`StreamError`] if the bytes are not a greeting, or have another version.
    pub fn from_bytes(bytes: &[u8; GREETING_BYTES]) -> Result<Self, StreamError> {
        check_start(bytes)?;
        Ok(Self {
            session: wire::u64_at(bytes, 16),
        })
    }
}

/// The source's first bytes: `magic, version u32, page size u32, session u64, ram bytes u64,
/// regions u32, number u64, channels u32, flags u32, lanes u32, zero ..60, crc u32`. The first sections are [`SectionKind::Layout`](super::SectionKind::Layout)
/// and [`SectionKind::Description`](super::SectionKind::Description).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// The number from the destination's [`Greeting`].
    pub session: u64,
    /// How often the guest has changed hands before.
    pub number: u64,
    /// Bytes of guest memory.
    pub ram_bytes: u64,
    /// Regions of guest memory.
    pub regions: u32,
    /// Channels that are to join the session, at most [`MAX_CHANNELS`]; 0: everything goes over this connection.
    pub channels: u32,
    /// The source lends its memory ([`SectionKind::Memory`](super::SectionKind::Memory)) and sends no pages. Then there are no
    /// channels.
    pub local: bool,
    /// Lanes that are to join the session besides the channels, so that the guest can be handed over before its memory: at least 2, one
    /// for what is asked for and others for the rest, at most [`MAX_LANES`]. 0: there is no postcopy.
    pub lanes: u32,
}

/// The bit of [`StreamHeader::local`] in the header's flags.
const LOCAL: u32 = 1;

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
        wire::put(&mut bytes, 36, &self.number.to_le_bytes());
        wire::put(&mut bytes, 44, &self.channels.to_le_bytes());
        let flags = if self.local { LOCAL } else { 0 };
        wire::put(&mut bytes, 48, &flags.to_le_bytes());
        wire::put(&mut bytes, 52, &self.lanes.to_le_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Reads a stream header.
    ///
    /// # Errors
    /// [`StreamError`] if the bytes are not a stream header, have another version, or have an invalid field.
    pub fn from_bytes(bytes: &[u8; STREAM_HEADER_BYTES]) -> Result<Self, StreamError> {
        check_start(bytes)?;
        if u64::from(wire::u32_at(bytes, 12)) != crate::PAGE_SIZE {
            return Err(StreamError::Field("page size"));
        }
        let flags = wire::u32_at(bytes, 48);
        if flags & !LOCAL != 0 {
            return Err(StreamError::Field("flags"));
        }
        let header = Self {
            session: wire::u64_at(bytes, 16),
            ram_bytes: wire::u64_at(bytes, 24),
            regions: wire::u32_at(bytes, 32),
            number: wire::u64_at(bytes, 36),
            channels: wire::u32_at(bytes, 44),
            local: flags & LOCAL != 0,
            lanes: wire::u32_at(bytes, 52),
        };
        if header.channels > MAX_CHANNELS || header.local && header.channels > 0 {
            return Err(StreamError::Field("channels"));
        }
        if header.lanes > MAX_LANES || header.lanes == 1 || header.local && header.lanes > 0 {
            return Err(StreamError::Field("lanes"));
        }
        if header.regions == 0 || header.regions > MAX_REGIONS {
            return Err(StreamError::Field("regions"));
        }
        Ok(header)
    }
}

fn check_start(bytes: &[u8]) -> Result<(), StreamError> {
    check_magic(bytes, MAGIC)
}

/// Checks magic and version before the checksum, so that the error for other protocols and other versions says so.
pub(super) fn check_magic(bytes: &[u8], magic: [u8; 8]) -> Result<(), StreamError> {
    if bytes[..8] != magic {
        return Err(StreamError::Magic);
    }
    let version = wire::u32_at(bytes, 8);
    if version != VERSION {
        return Err(StreamError::Version(version));
    }
    check_seal(bytes)
}
