// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where everything is in the memory of a hint map, and the check that a memory holds one.

use crate::sync::AtomicU64;

/// Bytes before the bitmap.
pub const HEADER_BYTES: usize = 4096;
/// The first word: "LACUNAHM".
pub const MAGIC: u64 = u64::from_le_bytes(*b"LACUNAHM");
/// The layout's version.
pub const VERSION: u64 = 4;

pub(super) const MAGIC_WORD: usize = 0;
pub(super) const VERSION_WORD: usize = 1;
pub(super) const PAGES_WORD: usize = 2;
pub(super) const EPOCH_WORD: usize = 3;
pub(super) const PHASE_WORD: usize = 4;
pub(super) const HINTED_WORD: usize = 5;
pub(super) const AGENT_ONLY_WORD: usize = 6;
pub(super) const ANSWERED_WORD: usize = 7;
pub(super) const NOT_ASKED_WORD: usize = 8;
pub(super) const PLANES_WORD: usize = HEADER_BYTES / 8;
/// Words of a plane that have their marks in one word, and share a bit of the summary.
pub(super) const CHUNK_WORDS: usize = 64;

pub(super) const NO_DRIVER: u64 = 1;
pub(super) const NO_AGENT: u64 = 2;

/// Bytes of a map for `pages` pages, header included; `None` if that overflows.
pub const fn bytes_for(pages: u64) -> Option<u64> {
    let Some(planes) = pages.div_ceil(64).checked_mul(16) else {
        return None;
    };
    let Some(bytes) = planes.checked_add((mark_words(pages) + summary_words(pages)) * 8) else {
        return None;
    };
    bytes.checked_add(HEADER_BYTES as u64)
}

/// 64-bit words of marks. Each bit stands for 64 pages.
pub(super) const fn mark_words(pages: u64) -> u64 {
    pages.div_ceil(64 * CHUNK_WORDS as u64)
}

/// 64-bit words of the summary. Each bit stands for 64 words of 64 pages.
pub(super) const fn summary_words(pages: u64) -> u64 {
    pages.div_ceil(64 * CHUNK_WORDS as u64 * 64)
}

/// The memory of a [`HintMap`](super::HintMap), as 64-bit atomic words.
pub trait Words {
    /// The word at `index`, or `None` past the end.
    fn word(&self, index: usize) -> Option<&AtomicU64>;
}

impl Words for &[AtomicU64] {
    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.get(index)
    }
}

/// The memory is not a valid hint map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintMapError {
    /// The first word is not [`MAGIC`].
    Magic(u64),
    /// Another version than [`VERSION`].
    Version(u64),
    /// The memory is too small for the pages that its header claims.
    TooSmall {
        /// Pages the header claims.
        pages: u64,
    },
}

impl core::fmt::Display for HintMapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "not a hint map: it starts with {found:#x}"),
            Self::Version(found) => {
                write!(f, "hint map version {found}, this build knows {VERSION}")
            }
            Self::TooSmall { pages } => write!(f, "hint map too small for its {pages} pages"),
        }
    }
}

impl core::error::Error for HintMapError {}

pub(super) fn check_size<W: Words>(words: &W, pages: u64) -> Result<(), HintMapError> {
    let too_small = HintMapError::TooSmall { pages };
    let bytes = bytes_for(pages).ok_or(too_small)?;
    let last = usize::try_from(bytes / 8 - 1).map_err(|_| too_small)?;
    words.word(last).map(|_| ()).ok_or(too_small)
}
