// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest pages: numbers, ranges, and rounding inward to whole pages.

/// Bytes of a guest page: the unit of the migration bitmap, the hint map and KVM's dirty log.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// A run of guest pages: `count` pages from page frame number `first`.
///
/// A range is never empty and its end never overflows; [`PageRange::new`] and
/// [`PageRange::inside`] are the only ways to make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRange {
    first: u64,
    count: u64,
}

impl PageRange {
    /// The pages `first .. first + count`, or `None` if there are none or the end overflows.
    pub const fn new(first: u64, count: u64) -> Option<Self> {
        if count == 0 || first.checked_add(count).is_none() {
            return None;
        }
        Some(Self { first, count })
    }

    /// The pages that lie wholly inside the bytes `gpa .. gpa + len`: the start rounds up, the end
    /// rounds down. `None` if no whole page does, or if the end of the bytes overflows.
    ///
    /// ```
    /// use spec::PageRange;
    /// // One byte short at the front: the first page is not covered.
    /// assert_eq!(PageRange::inside(0x1001, 0x2fff), PageRange::new(2, 2));
    /// assert_eq!(PageRange::inside(0x1000, 0xfff), None);
    /// ```
    pub const fn inside(gpa: u64, len: u64) -> Option<Self> {
        let Some(end) = gpa.checked_add(len) else {
            return None;
        };
        let first = gpa.div_ceil(PAGE_SIZE);
        let end = end >> PAGE_SHIFT;
        if end <= first {
            return None;
        }
        Some(Self {
            first,
            count: end - first,
        })
    }

    /// The page frame number of the first page.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// How many pages; at least 1.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// The page frame number after the last page.
    pub const fn end(self) -> u64 {
        self.first + self.count
    }

    /// The bytes of the range.
    pub const fn bytes(self) -> u64 {
        self.count << PAGE_SHIFT
    }

    /// The pages that are in both ranges.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        if end <= first {
            None
        } else {
            Self::new(first, end - first)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_that_ends_past_the_address_space_is_none() {
        assert_eq!(PageRange::inside(u64::MAX - 4095, 8192), None);
        assert_eq!(PageRange::new(u64::MAX, 1), None);
    }

    #[test]
    fn every_small_byte_range_holds_exactly_the_whole_pages_in_it() {
        // Scaled to offsets around page borders, where rounding can go wrong.
        let edges = [
            0u64, 1, 2047, 4095, 4096, 4097, 8191, 8192, 8193, 12287, 12288,
        ];
        for &gpa in &edges {
            for &len in &edges {
                let whole: std::vec::Vec<u64> = (0..8)
                    .filter(|p| p * 4096 >= gpa && (p + 1) * 4096 <= gpa + len)
                    .collect();
                let got: std::vec::Vec<u64> = PageRange::inside(gpa, len)
                    .map(|r| (r.first()..r.end()).collect())
                    .unwrap_or_default();
                assert_eq!(got, whole, "gpa {gpa} len {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_page_outside_the_bytes_is_ever_covered(gpa: u64, len: u64) {
            if let Some(range) = PageRange::inside(gpa, len) {
                let end = u128::from(gpa) + u128::from(len);
                prop_assert!(u128::from(range.first()) * 4096 >= u128::from(gpa));
                prop_assert!(u128::from(range.end()) * 4096 <= end);
            }
        }
    }
}
