// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames: the header, the errors of invalid frames, and the writing of a payload.

use crate::wire;

/// The first four bytes of every frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LCTL");
/// The protocol's version, exchanged in [`super::Request::Hello`].
pub const VERSION: u32 = 1;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 16;
/// The most payload a frame may have.
pub const MAX_PAYLOAD: usize = 256;

/// A frame header: `magic u32, kind u16, zero u16, sequence u32, length u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the payload is, see [`super::Request`] and [`super::Reply`].
    pub kind: u16,
    /// Chosen by the client, repeated in the reply.
    pub sequence: u32,
    /// Bytes of payload.
    pub length: u32,
}

impl Header {
    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        wire::put(&mut bytes, 0, &MAGIC.to_le_bytes());
        wire::put(&mut bytes, 4, &self.kind.to_le_bytes());
        wire::put(&mut bytes, 8, &self.sequence.to_le_bytes());
        wire::put(&mut bytes, 12, &self.length.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`ControlError`] for a wrong magic number or too long a payload.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ControlError> {
        let magic = wire::u32_at(bytes, 0);
        if magic != MAGIC {
            return Err(ControlError::Magic(magic));
        }
        let header = Self {
            kind: wire::u16_at(bytes, 4),
            sequence: wire::u32_at(bytes, 8),
            length: wire::u32_at(bytes, 12),
        };
        if header.length as usize > MAX_PAYLOAD {
            return Err(ControlError::TooLong(header.length));
        }
        Ok(header)
    }
}

/// A frame is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Not the protocol's magic number.
    Magic(u32),
    /// A payload longer than [`MAX_PAYLOAD`].
    TooLong(u32),
    /// An unknown kind, or one of the other direction.
    Kind(u16),
    /// A payload with the wrong length for its kind.
    Length {
        /// The frame's kind.
        kind: u16,
        /// Its payload's length.
        length: usize,
    },
    /// A field with an invalid value.
    Value {
        /// The frame's kind.
        kind: u16,
    },
}

impl core::fmt::Display for ControlError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "not a control frame: it starts with {found:#x}"),
            Self::TooLong(length) => {
                write!(
                    f,
                    "a payload of {length} bytes is longer than {MAX_PAYLOAD}"
                )
            }
            Self::Kind(kind) => write!(f, "unknown frame kind {kind}"),
            Self::Length { kind, length } => {
                write!(
                    f,
                    "frame kind {kind} with a payload of {length} bytes, which is not its length"
                )
            }
            Self::Value { kind } => write!(f, "frame kind {kind} with an invalid value"),
        }
    }
}

impl core::error::Error for ControlError {}

/// Appends fields to a payload.
pub(super) struct Body<'a> {
    bytes: &'a mut [u8],
    pub(super) length: usize,
}

impl<'a> Body<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, length: 0 }
    }

    pub(super) fn u16(&mut self, value: u16) {
        wire::put(self.bytes, self.length, &value.to_le_bytes());
        self.length += 2;
    }

    pub(super) fn u32(&mut self, value: u32) {
        wire::put(self.bytes, self.length, &value.to_le_bytes());
        self.length += 4;
    }

    pub(super) fn u64(&mut self, value: u64) {
        wire::put(self.bytes, self.length, &value.to_le_bytes());
        self.length += 8;
    }
}

pub(super) fn finish(
    frame: &mut [u8; HEADER_BYTES + MAX_PAYLOAD],
    kind: u16,
    sequence: u32,
    length: usize,
) -> usize {
    let header = Header {
        kind,
        sequence,
        length: length as u32,
    };
    frame[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    HEADER_BYTES + length
}
