// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Half of a guest: what one side has left of a migration that handed the guest over before all of its memory.

use super::FormatError;
use crate::wire;

/// Which side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that handed the guest over. Its pages are as they were at that moment.
    Source,
    /// The side where the guest has run since. It has the machine's state.
    Destination,
}

/// Whose half a file is, and of which hand-over. Two halves of one hand-over can make a whole snapshot.
///
/// In the header: `known_at u64, session u64, number u64, side u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// The side that has saved it.
    pub side: Side,
    /// The migration's session, which both sides know.
    pub session: u64,
    /// How often the guest had changed hands in the session, this hand-over included.
    pub number: u64,
}

impl Half {
    /// Bytes in the header.
    pub(super) const BYTES: usize = 28;

    /// Whether `other` is of the same hand-over.
    pub const fn is_of_same_hand_over(&self, other: &Self) -> bool {
        self.session == other.session && self.number == other.number
    }

    pub(super) fn to_bytes(self, known_at: u64) -> [u8; Self::BYTES] {
        let side: u32 = match self.side {
            Side::Source => 1,
            Side::Destination => 2,
        };
        let mut bytes = [0; Self::BYTES];
        wire::put(&mut bytes, 0, &known_at.to_le_bytes());
        wire::put(&mut bytes, 8, &self.session.to_le_bytes());
        wire::put(&mut bytes, 16, &self.number.to_le_bytes());
        wire::put(&mut bytes, 24, &side.to_le_bytes());
        bytes
    }

    /// Reads it, and where the bitmap of known pages is.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<(Self, u64), FormatError> {
        let side = match wire::u32_at(bytes, 24) {
            1 => Side::Source,
            2 => Side::Destination,
            _ => return Err(FormatError::Field("side")),
        };
        let half = Self {
            side,
            session: wire::u64_at(bytes, 8),
            number: wire::u64_at(bytes, 16),
        };
        Ok((half, wire::u64_at(bytes, 0)))
    }
}

impl core::fmt::Display for Side {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}
