// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the parts of a snapshot file are. A few sizes decide it, so a reader computes the places and compares.

use super::{
    ALIGNMENT, BITMAP_BLOCK_BYTES, BITMAP_BLOCK_PAGES, Bitmap, CHECKSUM_BYTES, DESCRIPTION_AT,
    FormatError, MAX_PAGES, MAX_STATE_AREA,
};
use crate::PAGE_SIZE;
use crate::stream::{MAX_DESCRIPTION, MAX_REGIONS};

/// The sizes that decide where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pages of guest memory, all regions together.
    pub pages: u64,
    /// Memory regions.
    pub regions: u32,
    /// Bytes of the machine's description.
    pub description_bytes: u32,
}

/// Where the parts of a snapshot file are, in bytes from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The page bitmap.
    pub bitmap_at: u64,
    /// The bitmap of known pages, in a half; where the checksums are in a whole snapshot, which has none.
    pub known_at: u64,
    /// The checksums of the pages.
    pub checksums_at: u64,
    /// The pages.
    pub pages_at: u64,
    /// The machine's state, and the commit record after it.
    pub state_at: u64,
}

impl Sizes {
    /// Where the parts are in a snapshot of these sizes.
    ///
    /// # Errors
    /// [`FormatError::Field`] names the size that a file cannot have.
    pub const fn places(self) -> Result<Places, FormatError> {
        self.places_with(0)
    }

    /// Where the parts are in a half of these sizes.
    ///
    /// # Errors
    /// As [`Sizes::places`].
    pub const fn places_in_half(self) -> Result<Places, FormatError> {
        self.places_with(self.bitmap_blocks())
    }

    /// As [`Sizes::places`], with `known_blocks` blocks in the bitmap of known pages.
    const fn places_with(self, known_blocks: u64) -> Result<Places, FormatError> {
        if self.pages == 0 || self.pages > MAX_PAGES {
            return Err(FormatError::Field("pages"));
        }
        if self.regions == 0 || self.regions > MAX_REGIONS || self.regions as u64 > self.pages {
            return Err(FormatError::Field("regions"));
        }
        if self.description_bytes as u64 > MAX_DESCRIPTION {
            return Err(FormatError::Field("description length"));
        }
        // Nothing overflows: of 4 PiB of memory the places have 53 bits.
        let bitmap_at =
            (DESCRIPTION_AT + self.description_bytes as u64).next_multiple_of(ALIGNMENT);
        let bitmap_bytes = self.bitmap_blocks() * BITMAP_BLOCK_BYTES as u64;
        let known_at = (bitmap_at + bitmap_bytes).next_multiple_of(ALIGNMENT);
        let known_bytes = known_blocks * BITMAP_BLOCK_BYTES as u64;
        let checksums_at = (known_at + known_bytes).next_multiple_of(ALIGNMENT);
        let checksum_bytes = self.pages * CHECKSUM_BYTES;
        let pages_at = (checksums_at + checksum_bytes).next_multiple_of(ALIGNMENT);
        let state_at = (pages_at + self.pages * PAGE_SIZE).next_multiple_of(ALIGNMENT);
        Ok(Places {
            bitmap_at,
            known_at,
            checksums_at,
            pages_at,
            state_at,
        })
    }

    /// Blocks of a bitmap.
    pub const fn bitmap_blocks(self) -> u64 {
        self.pages.div_ceil(BITMAP_BLOCK_PAGES)
    }
}

impl Places {
    /// Where block `block` of `bitmap` is.
    pub const fn bitmap_block(self, bitmap: Bitmap, block: u64) -> u64 {
        let at = match bitmap {
            Bitmap::Pages => self.bitmap_at,
            Bitmap::Known => self.known_at,
        };
        at + block * BITMAP_BLOCK_BYTES as u64
    }

    /// Where the checksum of the page in `slot` is.
    pub const fn checksum(self, slot: u64) -> u64 {
        self.checksums_at + slot * CHECKSUM_BYTES
    }

    /// Where the page in `slot` is.
    pub const fn page(self, slot: u64) -> u64 {
        self.pages_at + slot * PAGE_SIZE
    }

    /// The most bytes that the file can have.
    pub const fn most_bytes(self) -> u64 {
        self.state_at + MAX_STATE_AREA
    }
}
