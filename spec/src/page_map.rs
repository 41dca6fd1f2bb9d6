// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A picture of guest memory at one moment: its regions, and one bit a page.
//!
//! The device answers [`crate::control::Request::PageMap`] with such a file (memfd, sealed against every
//! change):
//!
//! ```text
//! byte 0     magic "LACUNAPM"   8   version, little-endian   16  pages   24  regions
//!      32    of each region: first page, pages
//!      ...   bitmap: bit p % 64 of word p / 64 is page p, from guest-physical 0
//! ```
//!
//! Regions rise and do not touch each other's pages; `pages` is the end of the last. All fields are 64-bit
//! words. Bits between regions mean nothing.

use crate::{PageRange, wire};

/// The first word: "LACUNAPM".
pub const MAGIC: u64 = u64::from_le_bytes(*b"LACUNAPM");
/// The layout's version.
pub const VERSION: u64 = 1;
/// Bytes before the table of regions.
pub const HEADER_BYTES: usize = 32;
/// Bytes of a region in the table.
pub const REGION_BYTES: usize = 16;

/// Bytes that are no picture of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageMapError {
    /// The first word is not [`MAGIC`].
    Magic(u64),
    /// Another version than [`VERSION`].
    Version(u64),
    /// There are fewer or more bytes than the header's numbers need.
    Length(usize),
    /// Regions that are empty, overlap, fall, or end elsewhere than the memory.
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

/// The bytes before the table of regions, for memory that ends after `pages` pages.
pub fn header(pages: u64, regions: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    for (index, word) in [MAGIC, VERSION, pages, regions].into_iter().enumerate() {
        wire::put(&mut bytes, index * 8, &word.to_le_bytes());
    }
    bytes
}

/// One entry of the table of regions.
pub fn region(range: PageRange) -> [u8; REGION_BYTES] {
    let mut bytes = [0; REGION_BYTES];
    wire::put(&mut bytes, 0, &range.first().to_le_bytes());
    wire::put(&mut bytes, 8, &range.count().to_le_bytes());
    bytes
}

/// Where the bitmap begins behind `regions` regions; `None` if that overflows.
pub fn bitmap_offset(regions: u64) -> Option<u64> {
    regions
        .checked_mul(REGION_BYTES as u64)?
        .checked_add(HEADER_BYTES as u64)
}

/// Bytes of a whole map; `None` if that overflows.
pub fn bytes_for(pages: u64, regions: u64) -> Option<u64> {
    bitmap_offset(regions)?.checked_add(pages.div_ceil(64).checked_mul(8)?)
}

/// A map in memory, checked.
#[derive(Clone, Copy, Debug)]
pub struct PageMap<'a> {
    pages: u64,
    regions: &'a [u8],
    bitmap: &'a [u8],
}

impl<'a> PageMap<'a> {
    /// Reads the map that `bytes` are.
    ///
    /// # Errors
    /// [`PageMapError`] if they are none.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, PageMapError> {
        let length = PageMapError::Length(bytes.len());
        let (head, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(length)?;
        let magic = wire::u64_at(head, 0);
        if magic != MAGIC {
            return Err(PageMapError::Magic(magic));
        }
        let version = wire::u64_at(head, 8);
        if version != VERSION {
            return Err(PageMapError::Version(version));
        }
        let (pages, regions) = (wire::u64_at(head, 16), wire::u64_at(head, 24));
        if bytes_for(pages, regions) != u64::try_from(bytes.len()).ok() {
            return Err(length);
        }
        // The lengths add up, so the table is no longer than the bytes are.
        let (regions, bitmap) = rest
            .split_at_checked(regions as usize * REGION_BYTES)
            .ok_or(length)?;
        let end = regions
            .chunks_exact(REGION_BYTES)
            .try_fold(0, |end, entry| {
                region_at(entry)
                    .filter(|region| region.first() >= end)
                    .map(PageRange::end)
            });
        if end != Some(pages) {
            return Err(PageMapError::Regions);
        }
        Ok(Self {
            pages,
            regions,
            bitmap,
        })
    }

    /// The end of the last region, in pages.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Guest memory, in rising order.
    pub fn regions(&self) -> impl Iterator<Item = PageRange> + 'a {
        self.regions
            .chunks_exact(REGION_BYTES)
            .filter_map(region_at)
    }

    /// The bits of pages `64 * index ..`; 0 past the end.
    pub fn word(&self, index: usize) -> u64 {
        index
            .checked_mul(8)
            .filter(|&at| at < self.bitmap.len())
            .map_or(0, |at| wire::u64_at(self.bitmap, at))
    }
}

fn region_at(entry: &[u8]) -> Option<PageRange> {
    PageRange::new(wire::u64_at(entry, 0), wire::u64_at(entry, 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn map(regions: &[(u64, u64)], words: &[u64]) -> Vec<u8> {
        let end = regions.last().map_or(0, |(first, count)| first + count);
        let mut bytes = header(end, regions.len() as u64).to_vec();
        for &(first, count) in regions {
            bytes.extend(region(PageRange::new(first, count).unwrap()));
        }
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = map(&[(0, 10), (60, 8)], &[0x3ff, 0xf]);
        let map = PageMap::parse(&bytes).unwrap();
        assert_eq!(map.pages(), 68);
        let regions: Vec<_> = map.regions().map(|r| (r.first(), r.count())).collect();
        assert_eq!(regions, [(0, 10), (60, 8)]);
        assert_eq!((map.word(0), map.word(1), map.word(2)), (0x3ff, 0xf, 0));
        assert_eq!(map.word(usize::MAX), 0);
    }

    #[test]
    fn every_other_length_is_refused() {
        let bytes = map(&[(0, 10), (60, 8)], &[1, 2]);
        for length in 0..bytes.len() {
            let error = PageMap::parse(&bytes[..length]).unwrap_err();
            assert_eq!(error, PageMapError::Length(length));
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(PageMap::parse(&longer).is_err());
    }

    #[test]
    fn regions_that_make_no_sense_are_refused() {
        let mut bytes = map(&[(0, 10), (60, 8)], &[1, 2]);
        for (at, value) in [(32, 70u64), (40, 0), (40, 61), (48, 9), (56, 4), (16, 67)] {
            let whole = bytes.clone();
            wire::put(&mut bytes, at, &value.to_le_bytes());
            let error = PageMap::parse(&bytes).unwrap_err();
            assert_eq!(error, PageMapError::Regions, "{value} at {at}");
            bytes = whole;
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), flips in proptest::collection::vec((0usize..64, any::<u8>()), 0..4)) {
            let _ = PageMap::parse(&bytes);
            let mut map = map(&[(1, 2)], &[6]);
            for (at, value) in flips {
                let at = at % map.len();
                map[at] = value;
            }
            if let Ok(map) = PageMap::parse(&map) {
                prop_assert!(map.regions().all(|region| region.end() <= map.pages()));
            }
        }
    }
}
