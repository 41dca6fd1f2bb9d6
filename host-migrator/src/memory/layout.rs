// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where guest memory lies in guest-physical addresses.

use spec::{PAGE_SIZE, PageRange};

use super::error::RamError;

/// The regions of guest memory, ascending and apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(Vec<PageRange>);

impl Layout {
    /// Of `regions`.
    ///
    /// # Errors
    /// [`RamError::Region`] if there is none, or one begins before the end of the one before it.
    pub fn new(regions: Vec<PageRange>) -> Result<Self, RamError> {
        let bad = |region: &PageRange| RamError::Region {
            gpa: region.first() * PAGE_SIZE,
            len: region.bytes(),
        };
        let overlapping = regions
            .windows(2)
            .find(|pair| pair[0].end() > pair[1].first());
        match overlapping {
            Some(pair) => Err(bad(&pair[1])),
            None if regions.is_empty() => Err(RamError::Region { gpa: 0, len: 0 }),
            None => Ok(Self(regions)),
        }
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[PageRange] {
        &self.0
    }

    /// Pages that a bitmap from guest-physical 0 must have bits for.
    pub fn bitmap_pages(&self) -> u64 {
        self.0.last().map_or(0, |region| region.end())
    }

    /// Pages of memory, holes between regions not counted.
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|region| region.count()).sum()
    }

    /// The regions on the wire: `gpa u64, length u64` each, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0
            .iter()
            .flat_map(|region| [region.first() * PAGE_SIZE, region.bytes()])
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    /// Makes sure that all pages of `range` are in one region. Returns the region's index.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] if they are not.
    pub fn check(&self, range: PageRange) -> Result<usize, RamError> {
        let index = self.index_of(range.first());
        self.0
            .get(index)
            .filter(|region| region.first() <= range.first() && range.end() <= region.end())
            .map(|_| index)
            .ok_or(RamError::OutOfRange {
                first: range.first(),
                end: range.end(),
            })
    }

    /// The parts of `range` that are memory, cut where one region ends and the next begins.
    pub fn pieces(&self, range: PageRange) -> impl Iterator<Item = PageRange> {
        self.0[self.index_of(range.first())..]
            .iter()
            .map_while(move |region| region.intersection(range))
    }

    /// Whether `pfn` is the first page of a region.
    pub fn begins_region(&self, pfn: u64) -> bool {
        let region = self.0.get(self.index_of(pfn));
        region.is_some_and(|region| region.first() == pfn)
    }

    /// The index of the first region that ends after page `pfn`.
    fn index_of(&self, pfn: u64) -> usize {
        self.0.partition_point(|region| region.end() <= pfn)
    }
}
