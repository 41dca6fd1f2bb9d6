// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A block of the page bitmap, or of a half's bitmap of known pages.

use super::{BITMAP_BLOCK_BYTES, BITMAP_BLOCK_PAGES, BITMAP_BLOCK_WORDS, FormatError, SnapshotId};
use crate::wire;

/// Which bitmap of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bitmap {
    /// The pages that are in the file.
    Pages,
    /// In a half: the pages that its side has, those that are zero included.
    Known,
}

/// A block of a bitmap: which of [`BITMAP_BLOCK_PAGES`] slots have a page. `words [u64; 511], pages u32, crc u32`.
///
/// The checksum covers the snapshot's number, the bitmap and the block's number, too, so that a block of another snapshot or
/// another place is not taken for this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapBlock {
    /// The bits, the first slot in the lowest bit of the first word.
    pub words: [u64; BITMAP_BLOCK_WORDS],
}

/// Where the number of pages is.
const PAGES_AT: usize = 8 * BITMAP_BLOCK_WORDS;

impl BitmapBlock {
    /// A block without a page.
    pub const EMPTY: Self = Self {
        words: [0; BITMAP_BLOCK_WORDS],
    };

    /// Which block has the bit of `slot`.
    pub const fn of(slot: u64) -> u64 {
        slot / BITMAP_BLOCK_PAGES
    }

    /// The first slot of which block `block` has the bit.
    pub const fn first_slot(block: u64) -> u64 {
        block * BITMAP_BLOCK_PAGES
    }

    /// How many slots of the block have a page.
    pub fn pages(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether `slot`, whose bit is in this block, has a page.
    pub fn has(&self, slot: u64) -> bool {
        let bit = slot % BITMAP_BLOCK_PAGES;
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }

    /// The bytes of block `block` of a `bitmap` of snapshot `id`.
    pub fn to_bytes(&self, id: SnapshotId, bitmap: Bitmap, block: u64) -> [u8; BITMAP_BLOCK_BYTES] {
        let mut bytes = [0; BITMAP_BLOCK_BYTES];
        for (field, word) in bytes.chunks_exact_mut(8).zip(self.words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        wire::put(&mut bytes, PAGES_AT, &self.pages().to_le_bytes());
        let crc = checksum(&bytes, id, bitmap, block);
        wire::put(&mut bytes, BITMAP_BLOCK_BYTES - 4, &crc.to_le_bytes());
        bytes
    }

    /// Reads block `block` of a `bitmap` of snapshot `id`, which has `pages` slots in all.
    ///
    /// # Errors
    /// [`FormatError::Bitmap`] if it is another block or damaged, or has the bit of a slot that does not exist.
    pub fn from_bytes(
        bytes: &[u8; BITMAP_BLOCK_BYTES],
        id: SnapshotId,
        bitmap: Bitmap,
        block: u64,
        pages: u64,
    ) -> Result<Self, FormatError> {
        let mut read = Self::EMPTY;
        for (word, field) in read.words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = wire::u64_at(field, 0);
        }
        let is_whole = checksum(bytes, id, bitmap, block)
            == wire::u32_at(bytes, BITMAP_BLOCK_BYTES - 4)
            && read.pages() == wire::u32_at(bytes, PAGES_AT)
            && read.end() <= pages.saturating_sub(Self::first_slot(block));
        if is_whole {
            Ok(read)
        } else {
            Err(FormatError::Bitmap { bitmap, block })
        }
    }

    /// The slot after the last one that has a page, counted from the block's first.
    fn end(&self) -> u64 {
        let last = self.words.iter().rposition(|word| *word != 0);
        last.map_or(0, |index| {
            index as u64 * 64 + u64::from(64 - self.words[index].leading_zeros())
        })
    }
}

/// The checksum of a block's bytes and of what it belongs to.
fn checksum(bytes: &[u8; BITMAP_BLOCK_BYTES], id: SnapshotId, bitmap: Bitmap, block: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if bitmap == Bitmap::Known {
        hasher.update(b"known");
    }
    hasher.update(&id.to_bytes());
    hasher.update(&block.to_le_bytes());
    hasher.update(&bytes[..BITMAP_BLOCK_BYTES - 4]);
    hasher.finalize()
}
