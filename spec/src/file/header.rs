// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first bytes of a snapshot file.

use super::half::Half;
use super::{FormatError, HALF_MAGIC, HEADER_BYTES, MAGIC, Places, Sizes, VERSION};
use crate::PAGE_SIZE;
use crate::wire;

/// The number of a snapshot: random, new for each save. What is written last repeats it, so that parts of an earlier snapshot
/// at the same place are not taken for parts of this one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SnapshotId([u8; Self::BYTES]);

impl SnapshotId {
    /// Bytes of it.
    pub const BYTES: usize = 16;

    /// The number of these random bytes.
    pub const fn new(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes in the file.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }
}

impl core::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl core::fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// The first bytes of a snapshot file: `magic, version u32, page size u32, id [u8; 16], pages u64, regions u32, regions crc u32,
/// description length u32, description crc u32, bitmap_at u64, checksums_at u64, pages_at u64, state_at u64, half
/// [u8; 28], zero ..4092, crc u32`. The bytes of the half are zero in a whole snapshot, and the magic is another one in a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The snapshot's number.
    pub id: SnapshotId,
    /// What decides where the parts are.
    pub sizes: Sizes,
    /// CRC-32 of the table of regions.
    pub regions_crc: u32,
    /// CRC-32 of the machine's description.
    pub description_crc: u32,
    /// What one side of a migration has left, if this is not a whole snapshot.
    pub half: Option<Half>,
}

/// Where the half's bytes are.
const HALF_AT: usize = 88;
/// Bytes that have fields. The rest up to the checksum is zero.
const FIELD_BYTES: usize = HALF_AT + Half::BYTES;

impl Header {
    /// The bytes in the file.
    ///
    /// # Errors
    /// [`FormatError::Field`] if a file cannot have these sizes.
    pub fn to_bytes(self) -> Result<[u8; HEADER_BYTES], FormatError> {
        let places = self.places()?;
        let mut bytes = [0; HEADER_BYTES];
        let magic = self.half.map_or(MAGIC, |_| HALF_MAGIC);
        wire::put(&mut bytes, 0, &magic);
        wire::put(&mut bytes, 8, &VERSION.to_le_bytes());
        wire::put(&mut bytes, 12, &(PAGE_SIZE as u32).to_le_bytes());
        wire::put(&mut bytes, 16, &self.id.to_bytes());
        wire::put(&mut bytes, 32, &self.sizes.pages.to_le_bytes());
        wire::put(&mut bytes, 40, &self.sizes.regions.to_le_bytes());
        wire::put(&mut bytes, 44, &self.regions_crc.to_le_bytes());
        wire::put(&mut bytes, 48, &self.sizes.description_bytes.to_le_bytes());
        wire::put(&mut bytes, 52, &self.description_crc.to_le_bytes());
        wire::put(&mut bytes, 56, &places.bitmap_at.to_le_bytes());
        wire::put(&mut bytes, 64, &places.checksums_at.to_le_bytes());
        wire::put(&mut bytes, 72, &places.pages_at.to_le_bytes());
        wire::put(&mut bytes, 80, &places.state_at.to_le_bytes());
        if let Some(half) = self.half {
            wire::put(&mut bytes, HALF_AT, &half.to_bytes(places.known_at));
        }
        wire::seal(&mut bytes);
        Ok(bytes)
    }

    /// Where the parts of its file are.
    ///
    /// # Errors
    /// [`FormatError::Field`] if a file cannot have these sizes.
    pub const fn places(&self) -> Result<Places, FormatError> {
        match self.half {
            Some(_) => self.sizes.places_in_half(),
            None => self.sizes.places(),
        }
    }

    /// Reads a header. Returns it, and where the parts of the file are.
    ///
    /// # Errors
    /// [`FormatError`] if the bytes are not a snapshot's header, have another version, or have an invalid field.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<(Self, Places), FormatError> {
        let is_half = bytes[..8] == HALF_MAGIC;
        if bytes[..8] != MAGIC && !is_half {
            return Err(FormatError::Magic);
        }
        // Before the checksum, which another version may have elsewhere.
        let version = wire::u32_at(bytes, 8);
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        if !wire::is_sealed(bytes) {
            return Err(FormatError::Checksum("header"));
        }
        if u64::from(wire::u32_at(bytes, 12)) != PAGE_SIZE {
            return Err(FormatError::Field("page size"));
        }
        let mut id = [0; SnapshotId::BYTES];
        id.copy_from_slice(&bytes[16..32]);
        let half = match is_half {
            true => Some(Half::from_bytes(&bytes[HALF_AT..FIELD_BYTES])?),
            false => None,
        };
        let header = Self {
            id: SnapshotId(id),
            sizes: Sizes {
                pages: wire::u64_at(bytes, 32),
                regions: wire::u32_at(bytes, 40),
                description_bytes: wire::u32_at(bytes, 48),
            },
            regions_crc: wire::u32_at(bytes, 44),
            description_crc: wire::u32_at(bytes, 52),
            half: half.map(|(half, _)| half),
        };
        let places = header.places()?;
        if half.is_some_and(|(_, known_at)| known_at != places.known_at) {
            return Err(FormatError::Field("known_at"));
        }
        let said = [
            ("bitmap_at", 56, places.bitmap_at),
            ("checksums_at", 64, places.checksums_at),
            ("pages_at", 72, places.pages_at),
            ("state_at", 80, places.state_at),
        ];
        for (name, at, expected) in said {
            if wire::u64_at(bytes, at) != expected {
                return Err(FormatError::Field(name));
            }
        }
        let reserved_from = if is_half { FIELD_BYTES } else { HALF_AT };
        if bytes[reserved_from..HEADER_BYTES - 4]
            .iter()
            .any(|byte| *byte != 0)
        {
            return Err(FormatError::Field("reserved"));
        }
        Ok((header, places))
    }
}
