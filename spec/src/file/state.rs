// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The parts of the machine's state, and the commit record that ends a complete snapshot.

use super::{ENTRY_BYTES, FormatError, Sizes, SnapshotId};
use crate::stream::{MAX_STATE_BYTES, MAX_STATE_NAME, MAX_STATE_SECTIONS, StatePrefix, Totals};
use crate::wire;

/// The raw number of a part of the machine's state: "STAT".
const STATE: u32 = u32::from_le_bytes(*b"STAT");
/// The raw number of a commit record: "COMM".
const COMMIT: u32 = u32::from_le_bytes(*b"COMM");

/// Before the name and the bytes of a part of the machine's state: `kind u32, version u32, id [u8; 16], length u64,
/// name length u32, payload crc u32, zero ..124, crc u32`. The payload is the name and then the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHeader {
    /// The version of the bytes' format, which the VMM chooses.
    pub version: u32,
    /// Bytes of the name (UTF-8), 1 to [`MAX_STATE_NAME`].
    pub name_bytes: u32,
    /// Bytes of the part itself.
    pub length: u64,
    /// CRC-32 of the name and the bytes.
    pub payload_crc: u32,
}

/// The last thing in a complete snapshot: `kind u32, sections u32, id [u8; 16], pages u64, length u64, state bytes u64, totals
/// [u8; 40], known u64, zero ..124, crc u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Parts of the machine's state.
    pub sections: u32,
    /// Bytes of all parts together, without names and headers.
    pub state_bytes: u64,
    /// Pages that are in the file.
    pub pages: u64,
    /// Bytes from the header to the end of this record.
    pub length: u64,
    /// What the save has written.
    pub totals: Totals,
    /// In a half: the pages that its side has, those that are zero included. 0 in a whole snapshot.
    pub known: u64,
}

/// What stands in the area of the machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A part of the machine's state; its name and bytes follow.
    State(StateHeader),
    /// The end.
    Commit(Commit),
}

impl StateHeader {
    /// The bytes in the file.
    pub fn to_bytes(self, id: SnapshotId) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        wire::put(&mut bytes, 0, &STATE.to_le_bytes());
        wire::put(&mut bytes, 4, &self.version.to_le_bytes());
        wire::put(&mut bytes, 8, &id.to_bytes());
        wire::put(&mut bytes, 24, &self.length.to_le_bytes());
        wire::put(&mut bytes, 32, &self.name_bytes.to_le_bytes());
        wire::put(&mut bytes, 36, &self.payload_crc.to_le_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Bytes of the name and the part, which follow.
    pub const fn payload_bytes(self) -> u64 {
        self.name_bytes as u64 + self.length
    }
}

impl Commit {
    /// The bytes in the file.
    pub fn to_bytes(self, id: SnapshotId) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        wire::put(&mut bytes, 0, &COMMIT.to_le_bytes());
        wire::put(&mut bytes, 4, &self.sections.to_le_bytes());
        wire::put(&mut bytes, 8, &id.to_bytes());
        wire::put(&mut bytes, 24, &self.pages.to_le_bytes());
        wire::put(&mut bytes, 32, &self.length.to_le_bytes());
        wire::put(&mut bytes, 40, &self.state_bytes.to_le_bytes());
        wire::put(&mut bytes, 48, &self.totals.to_bytes());
        wire::put(&mut bytes, 88, &self.known.to_le_bytes());
        wire::seal(&mut bytes);
        bytes
    }

    /// Compares the record with what was read before it: `sections` parts with `state_bytes` bytes in all, and a record that
    /// ends `end` bytes after the header of a file with these `sizes`.
    ///
    /// # Errors
    /// [`FormatError::Commit`] names what differs.
    pub const fn check(
        self,
        sizes: Sizes,
        sections: usize,
        state_bytes: u64,
        end: u64,
    ) -> Result<(), FormatError> {
        if self.sections as usize != sections {
            return Err(FormatError::Commit("number of sections"));
        }
        if self.state_bytes != state_bytes {
            return Err(FormatError::Commit("size of the machine's state"));
        }
        if self.length != end {
            return Err(FormatError::Commit("length"));
        }
        if self.pages > sizes.pages {
            return Err(FormatError::Commit("number of pages"));
        }
        if self.known > sizes.pages {
            return Err(FormatError::Commit("number of known pages"));
        }
        Ok(())
    }
}

impl Entry {
    /// Reads what follows `sections` parts with `state_bytes` bytes in all, in snapshot `id`.
    ///
    /// # Errors
    /// [`FormatError`] if it is nothing that can be there, or belongs to another snapshot.
    pub fn from_bytes(
        bytes: &[u8; ENTRY_BYTES],
        id: SnapshotId,
        sections: usize,
        state_bytes: u64,
    ) -> Result<Self, FormatError> {
        let kind = wire::u32_at(bytes, 0);
        if ![STATE, COMMIT].contains(&kind) || !wire::is_sealed(bytes) {
            return Err(FormatError::NoEntry);
        }
        if bytes[8..24] != id.to_bytes() {
            return Err(FormatError::OtherSnapshot);
        }
        let used = if kind == COMMIT { 96 } else { 40 };
        if bytes[used..ENTRY_BYTES - 4].iter().any(|byte| *byte != 0) {
            return Err(FormatError::State);
        }
        if kind == COMMIT {
            let totals = Totals::from_bytes(&bytes[48..88]).map_err(|_| FormatError::State)?;
            return Ok(Self::Commit(Commit {
                sections: wire::u32_at(bytes, 4),
                state_bytes: wire::u64_at(bytes, 40),
                pages: wire::u64_at(bytes, 24),
                length: wire::u64_at(bytes, 32),
                totals,
                known: wire::u64_at(bytes, 88),
            }));
        }
        let header = StateHeader {
            version: wire::u32_at(bytes, 4),
            name_bytes: wire::u32_at(bytes, 32),
            length: wire::u64_at(bytes, 24),
            payload_crc: wire::u32_at(bytes, 36),
        };
        let fits = sections < MAX_STATE_SECTIONS
            && header.name_bytes >= 1
            && header.name_bytes as usize <= MAX_STATE_NAME
            && header.length <= StatePrefix::MAX_PART
            && header.length <= MAX_STATE_BYTES.saturating_sub(state_bytes);
        if fits {
            Ok(Self::State(header))
        } else {
            Err(FormatError::State)
        }
    }
}
