// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A snapshot file: a guest that was saved, for a later restore. `file-format.md` has the drawings and the reasons.
//!
//! Every page has a *slot*, counted over all regions of guest memory, and with it a bit in the page bitmap, a checksum and a
//! place in the file. So a page is found without a search, and a page that is written again takes the same place. All numbers
//! are little-endian, all checksums are CRC-32 (IEEE).
//!
//! | module | what it is |
//! |---|---|
//! | `header` | the first bytes: what the file is, and where its parts are |
//! | `places` | where the parts are, computed from a few sizes |
//! | `regions` | the table of memory regions |
//! | `half` | what one side has left of a migration that broke |
//! | `bitmap` | a block of the page bitmap, or of a half's bitmap of known pages |
//! | `state` | the parts of the machine's state, and the commit record after them |

mod bitmap;
mod half;
mod header;
mod places;
mod regions;
mod state;
#[cfg(test)]
mod tests;

pub use bitmap::{Bitmap, BitmapBlock};
pub use half::{Half, Side};
pub use header::{Header, SnapshotId};
pub use places::{Places, Sizes};
pub use regions::regions;
pub use state::{Commit, Entry, StateHeader};

use crate::PAGE_SIZE;
use crate::stream::{MAX_REGIONS, MAX_STATE_BYTES, MAX_STATE_NAME, MAX_STATE_SECTIONS};

/// The first eight bytes of a snapshot file.
pub const MAGIC: [u8; 8] = *b"LACUSN\r\n";
/// The first eight bytes of a half.
pub const HALF_MAGIC: [u8; 8] = *b"LACUHF\r\n";
/// The format's version. A reader accepts no other.
pub const VERSION: u32 = 1;
/// Bytes of a [`Header`].
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a [`BitmapBlock`].
pub const BITMAP_BLOCK_BYTES: usize = 4096;
/// 64-page words in a [`BitmapBlock`].
pub const BITMAP_BLOCK_WORDS: usize = 511;
/// Pages of which a [`BitmapBlock`] has the bits.
pub const BITMAP_BLOCK_PAGES: u64 = 64 * BITMAP_BLOCK_WORDS as u64;
/// Bytes of the checksum of a page.
pub const CHECKSUM_BYTES: u64 = 4;
/// Bytes of a [`StateHeader`] and of a [`Commit`] record.
pub const ENTRY_BYTES: usize = 128;
/// Page bitmap, checksums, pages and machine's state begin at multiples of this many bytes, counted from the header.
pub const ALIGNMENT: u64 = 64 << 10;
/// Where the table of memory regions begins.
pub const REGIONS_AT: u64 = HEADER_BYTES as u64;
/// Where the machine's description begins. The largest table of regions ends here.
pub const DESCRIPTION_AT: u64 = REGIONS_AT + MAX_REGIONS as u64 * 16;
/// The most pages of a guest: 4 PiB of memory.
pub const MAX_PAGES: u64 = 1 << 40;
/// The most bytes of the machine's state with all that belongs to it.
pub const MAX_STATE_AREA: u64 = MAX_STATE_BYTES
    + MAX_STATE_SECTIONS as u64 * (ENTRY_BYTES + MAX_STATE_NAME) as u64
    + ENTRY_BYTES as u64;

/// The checksum of a page.
pub fn page_checksum(page: &[u8; PAGE_SIZE as usize]) -> u32 {
    crc32fast::hash(page)
}

/// The bytes are not a valid snapshot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// Starts neither with [`MAGIC`] nor with [`HALF_MAGIC`].
    Magic,
    /// Another version than [`VERSION`].
    Version(u32),
    /// The checksum of this part is wrong.
    Checksum(&'static str),
    /// A field of the header with an invalid value; names the field.
    Field(&'static str),
    /// A block of a bitmap is damaged, or belongs to another snapshot or another place.
    Bitmap {
        /// The bitmap.
        bitmap: Bitmap,
        /// The block's number.
        block: u64,
    },
    /// Where a part of the machine's state or the commit record should be, is something else.
    NoEntry,
    /// A part of the machine's state, or a commit record, of another snapshot.
    OtherSnapshot,
    /// A part of the machine's state with an impossible name or size.
    State,
    /// The commit record does not agree with the rest of the file; names the field.
    Commit(&'static str),
}

impl core::fmt::Display for FormatError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic => f.write_str("not a Lacuna snapshot"),
            Self::Version(found) => write!(
                f,
                "snapshot version {found}, this build knows version {VERSION}"
            ),
            Self::Checksum(part) => write!(f, "the checksum of the {part} is wrong"),
            Self::Field(name) => write!(f, "invalid value in header field {name}"),
            Self::Bitmap { bitmap, block } => {
                let name = match bitmap {
                    Bitmap::Pages => "page bitmap",
                    Bitmap::Known => "bitmap of known pages",
                };
                write!(f, "block {block} of the {name} is damaged")
            }
            Self::NoEntry => f.write_str(
                "there is no commit record: the snapshot was not completed, or a part of the file is lost",
            ),
            Self::OtherSnapshot => f.write_str(
                "the machine's state belongs to another snapshot: this one was not completed",
            ),
            Self::State => f.write_str("a part of the machine's state is invalid"),
            Self::Commit(name) => {
                write!(f, "the commit record's {name} does not agree with the file")
            }
        }
    }
}

impl core::error::Error for FormatError {}
