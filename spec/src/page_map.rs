// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A picture of guest memory at one moment: its regions, and one bit a page.
//!
//! The device answers [`crate::control::Request::PageMap`] with such a file (memfd, sealed against every
//! change):
//!
//! ```text
//! byte 0     magic "LACUNAPM"   8   version, little-endian   16  words   24  regions
//!      32    of each region: first page, pages, its first word
//!      ...   the words of all regions
//! ```
//!
//! All fields are 64-bit words. Regions rise and share no page. A region has one word for every 64 pages of the
//! address space of which any is in it: page `p` is bit `p % 64` of word `first word + p / 64 - first page / 64`.
//! Two regions that meet within 64 pages have a word each for them. Bits of pages outside of the region mean
//! nothing. So a map's size goes by memory that is there, wherever it lies.

use core::ops::Range;

use crate::hint_map::word_masks;
use crate::{PageRange, wire};

/// The first word: "LACUNAPM".
pub const MAGIC: u64 = u64::from_le_bytes(*b"LACUNAPM");
/// The layout's version.
pub const VERSION: u64 = 2;
/// Bytes before the table of regions.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a region in the table.
pub const REGION_BYTES: usize = 24;

/// Bytes that are no picture of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageMapError {
    /// The first word is not [`MAGIC`].
    Magic(u64),
    /// Another version than [`VERSION`].
    Version(u64),
    /// There are fewer or more bytes than the header's numbers need.
    Length(usize),
    /// Regions that are empty, overlap, fall, or have other words than they need.
    Regions,
}

impl core::fmt::Display for PageMapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic(found) => write!(f, "not a page map: it starts with {found:#x}"),
            Self::Version(found) => {
                write!(f, "page map version {found}, this build knows {VERSION}")
            }
            Self::Length(length) => write!(f, "{length} bytes are not what the page map needs"),
            Self::Regions => f.write_str("the page map's regions make no sense"),
        }
    }
}

impl core::error::Error for PageMapError {}

/// How large a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Words of all regions.
    pub words: u64,
    /// Regions.
    pub regions: u64,
}

impl Header {
    /// The header of a map of these regions.
    pub fn of(regions: impl IntoIterator<Item = Region>) -> Self {
        regions
            .into_iter()
            .fold(Self::default(), |header, region| Self {
                words: region.first_word.saturating_add(region.word_count()),
                regions: header.regions + 1,
            })
    }

    /// The bytes before the table of regions.
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = [MAGIC, VERSION, self.words, self.regions];
        for (index, word) in fields.into_iter().enumerate() {
            wire::put(&mut bytes, index * 8, &word.to_le_bytes());
        }
        bytes
    }

    /// Reads what [`Header::to_bytes`] has written.
    ///
    /// # Errors
    /// [`PageMapError`] if it is not the header of a page map.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, PageMapError> {
        match (wire::u64_at(bytes, 0), wire::u64_at(bytes, 8)) {
            (MAGIC, VERSION) => Ok(Self {
                words: wire::u64_at(bytes, 16),
                regions: wire::u64_at(bytes, 24),
            }),
            (MAGIC, version) => Err(PageMapError::Version(version)),
            (magic, _) => Err(PageMapError::Magic(magic)),
        }
    }

    /// Where the words begin; `None` if that overflows.
    pub fn words_offset(self) -> Option<u64> {
        self.regions
            .checked_mul(REGION_BYTES as u64)?
            .checked_add(HEADER_BYTES as u64)
    }

    /// Bytes of the whole map; `None` if that overflows.
    pub fn map_bytes(self) -> Option<u64> {
        self.words_offset()?.checked_add(self.words.checked_mul(8)?)
    }
}

/// A region of guest memory, and where its words are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    range: PageRange,
    first_word: u64,
}

impl Region {
    /// The regions of a map of guest memory that lies in `ranges`, which rise.
    pub fn lay_out(ranges: impl IntoIterator<Item = PageRange>) -> impl Iterator<Item = Self> {
        ranges.into_iter().scan(0u64, |words, range| {
            let region = Self {
                range,
                first_word: *words,
            };
            *words = words.saturating_add(region.word_count());
            Some(region)
        })
    }

    /// Its pages.
    pub fn range(self) -> PageRange {
        self.range
    }

    /// Its first word's place among those of the map.
    pub fn first_word(self) -> u64 {
        self.first_word
    }

    /// The numbers `p / 64` of its pages `p`.
    pub fn indices(self) -> Range<u64> {
        self.range.first() / 64..self.range.end().div_ceil(64)
    }

    /// Which word of the map is about pages `64 * index ..` of this region; `None` if it has no such page.
    pub fn word_for(self, index: u64) -> Option<u64> {
        let indices = self.indices();
        indices
            .contains(&index)
            .then(|| self.first_word + (index - indices.start))
    }

    /// Its entry in the table.
    pub fn to_bytes(self) -> [u8; REGION_BYTES] {
        let mut bytes = [0; REGION_BYTES];
        let fields = [self.range.first(), self.range.count(), self.first_word];
        for (index, word) in fields.into_iter().enumerate() {
            wire::put(&mut bytes, index * 8, &word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| wire::u64_at(bytes, index * 8);
        Some(Self {
            range: PageRange::new(field(0), field(1))?,
            first_word: field(2),
        })
    }

    fn word_count(self) -> u64 {
        let Range { start, end } = self.indices();
        end - start
    }
}

/// The regions of a map, checked.
#[derive(Clone, Copy, Debug)]
pub struct Regions<'a>(&'a [u8]);

impl<'a> Regions<'a> {
    /// Reads the table `bytes` of a map with this `header`.
    ///
    /// # Errors
    /// [`PageMapError`] if the table does not fit the header, or makes no sense.
    pub fn parse(header: Header, bytes: &'a [u8]) -> Result<Self, PageMapError> {
        if header.words_offset() != u64::try_from(HEADER_BYTES + bytes.len()).ok() {
            return Err(PageMapError::Length(bytes.len()));
        }
        let ends = bytes
            .chunks_exact(REGION_BYTES)
            .try_fold((0, 0u64), |(end, words), entry| {
                let region = Region::from_bytes(entry)?;
                let fits = region.range.first() >= end && region.first_word == words;
                let words = words.checked_add(region.word_count())?;
                fits.then_some((region.range.end(), words))
            });
        match ends {
            Some((_, words)) if words == header.words => Ok(Self(bytes)),
            _ => Err(PageMapError::Regions),
        }
    }

    /// All of them, rising.
    pub fn iter(&self) -> impl Iterator<Item = Region> + use<'a> {
        self.0
            .chunks_exact(REGION_BYTES)
            .filter_map(Region::from_bytes)
    }

    /// Those that have any of the pages `64 * index ..`.
    fn around(&self, index: u64) -> impl Iterator<Item = Region> + use<'a> {
        let (entries, _) = self.0.as_chunks::<REGION_BYTES>();
        let below = entries.partition_point(|entry| {
            Region::from_bytes(entry).is_some_and(|region| region.indices().end <= index)
        });
        entries[below..]
            .iter()
            .filter_map(|entry| Region::from_bytes(entry))
            .take_while(move |region| region.indices().start <= index)
    }
}

/// A map in memory, checked.
#[derive(Clone, Copy, Debug)]
pub struct PageMap<'a> {
    regions: Regions<'a>,
    words: &'a [u8],
}

impl<'a> PageMap<'a> {
    /// Reads the map that `bytes` are.
    ///
    /// # Errors
    /// [`PageMapError`] if they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PageMapError> {
        let length = PageMapError::Length(bytes.len());
        let (head, rest) = bytes.split_first_chunk().ok_or(length)?;
        let header = Header::from_bytes(head)?;
        if header.map_bytes() != u64::try_from(bytes.len()).ok() {
            return Err(length);
        }
        // The lengths add up, so the table is no longer than the bytes are.
        let (table, words) = rest
            .split_at_checked(header.regions as usize * REGION_BYTES)
            .ok_or(length)?;
        Ok(Self {
            regions: Regions::parse(header, table)?,
            words,
        })
    }

    /// Guest memory, in rising order.
    pub fn regions(&self) -> impl Iterator<Item = PageRange> + use<'a> {
        self.regions.iter().map(Region::range)
    }

    /// The bits of pages `64 * index ..`; 0 for those that are not guest memory.
    pub fn word(&self, index: usize) -> u64 {
        let index = index as u64;
        let bits = self.regions.around(index).map(|region| {
            let word = region.word_for(index).map_or(0, |word| self.at(word));
            word & mask(region.range, index)
        });
        bits.fold(0, |all, bits| all | bits)
    }

    fn at(&self, word: u64) -> u64 {
        // All words of a checked region are there.
        wire::u64_at(self.words, word as usize * 8)
    }
}

/// The bits of those of the pages `64 * index ..` that are in `range`.
fn mask(range: PageRange, index: u64) -> u64 {
    (index.checked_mul(64))
        .and_then(|first| PageRange::new(first, 64)?.intersection(range))
        .and_then(|pages| word_masks(pages).next())
        .map_or(0, |(_, mask)| mask)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn map(regions: &[(u64, u64)], words: &[u64]) -> Vec<u8> {
        let ranges = regions
            .iter()
            .map(|&(first, count)| PageRange::new(first, count).unwrap());
        let regions: Vec<_> = Region::lay_out(ranges).collect();
        let mut bytes = Header::of(regions.iter().copied()).to_bytes().to_vec();
        regions
            .iter()
            .for_each(|region| bytes.extend(region.to_bytes()));
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        // The first word has bits of the region after, and of no memory: they mean nothing.
        let bytes = map(&[(0, 10), (60, 8)], &[u64::MAX >> 3, 0b11 << 60, 0xf]);
        let map = PageMap::parse(&bytes).unwrap();
        let regions: Vec<_> = map.regions().map(|r| (r.first(), r.count())).collect();
        assert_eq!(regions, [(0, 10), (60, 8)]);
        let words = [0x3ff | 0b11 << 60, 0xf, 0, 0];
        assert_eq!([0, 1, 2, usize::MAX].map(|index| map.word(index)), words);
    }

    #[test]
    fn memory_at_64_tib_has_as_many_words_as_any_other() {
        const FAR: u64 = 64 << (40 - 12);
        let bytes = map(&[(0, 64), (FAR, 128)], &[1, 2, 4]);
        assert_eq!(bytes.len(), HEADER_BYTES + 2 * REGION_BYTES + 3 * 8);
        let map = PageMap::parse(&bytes).unwrap();
        let far = (FAR / 64) as usize;
        let words = [0, 1, far - 1, far, far + 1, far + 2].map(|index| map.word(index));
        assert_eq!(words, [1, 0, 0, 2, 4, 0]);
    }

    #[test]
    fn every_other_length_is_refused() {
        let bytes = map(&[(0, 10), (60, 8)], &[1, 2, 3]);
        for length in 0..bytes.len() {
            let error = PageMap::parse(&bytes[..length]).unwrap_err();
            assert_eq!(error, PageMapError::Length(length));
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(PageMap::parse(&longer).is_err());
    }

    #[test]
    fn regions_that_make_no_sense_are_refused() {
        let mut bytes = map(&[(0, 10), (60, 8)], &[1, 2, 3]);
        for (at, value) in [
            // The first page, the pages, the first word of the first region.
            (32, 70u64),
            (32, u64::MAX),
            (40, 0),
            (40, 61),
            (40, 65),
            (48, 1),
            // The same of the second.
            (56, 9),
            (64, 4),
            (64, u64::MAX - 60),
            (72, 0),
            (72, 2),
            (72, u64::MAX),
        ] {
            let whole = bytes.clone();
            wire::put(&mut bytes, at, &value.to_le_bytes());
            let error = PageMap::parse(&bytes).unwrap_err();
            assert_eq!(error, PageMapError::Regions, "{value} at {at}");
            bytes = whole;
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), flips in proptest::collection::vec((0usize..88, any::<u8>()), 0..4), index: usize) {
            let _ = PageMap::parse(&bytes);
            let mut map = map(&[(1, 2), (70, 3)], &[6, 0]);
            for (at, value) in flips {
                let at = at % map.len();
                map[at] = value;
            }
            if let Ok(map) = PageMap::parse(&map) {
                map.word(index);
                for region in map.regions() {
                    map.word(region.first() as usize / 64);
                    map.word((region.end() - 1) as usize / 64);
                }
            }
        }
    }
}
