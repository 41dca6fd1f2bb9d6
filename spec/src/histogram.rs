// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers counted in bins, such as times that a guest measures. A figure that comes from them is at most one bin too large.

/// How many bins there are.
pub const BINS: usize = 256;

/// Numbers, counted in bins. The first bin ends at 2 to the power `FIRST`; each power of two after that has 2 to the power `FINE`
/// bins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<const FIRST: u32, const FINE: u32> {
    bins: [u64; BINS],
}

impl<const FIRST: u32, const FINE: u32> Default for Histogram<FIRST, FINE> {
    fn default() -> Self {
        Self { bins: [0; BINS] }
    }
}

impl<const FIRST: u32, const FINE: u32> Histogram<FIRST, FINE> {
    /// The bin of a number.
    pub const fn bin_of(number: u64) -> usize {
        if number >> FIRST == 0 {
            return 0;
        }
        let bits = number.ilog2();
        let fine = (number >> (bits - FINE)) as usize & ((1 << FINE) - 1);
        let bin = 1 + (((bits - FIRST) as usize) << FINE) + fine;
        if bin < BINS { bin } else { BINS - 1 }
    }

    /// The end of a bin. The last one has no end, and this is where it would be.
    pub const fn end_of(bin: usize) -> u64 {
        let Some(above) = bin.checked_sub(1) else {
            return 1 << FIRST;
        };
        let power = (above >> FINE) as u32;
        let fine = (above as u64 & ((1 << FINE) - 1)) + 1;
        ((1 << FINE) + fine) << (FIRST - FINE + power)
    }

    /// The numbers that `bins` counts.
    pub const fn new(bins: [u64; BINS]) -> Self {
        Self { bins }
    }

    /// Counts another number.
    pub fn add(&mut self, number: u64) {
        self.bins[Self::bin_of(number)] += 1;
    }

    /// Counts the numbers of `other`, too.
    pub fn merge(&mut self, other: &Self) {
        for (bin, more) in self.bins.iter_mut().zip(other.bins) {
            *bin = bin.saturating_add(more);
        }
    }

    /// The numbers that were counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            bins: core::array::from_fn(|bin| self.bins[bin].saturating_sub(earlier.bins[bin])),
        }
    }

    /// All of them but the greatest.
    #[must_use]
    pub fn without_greatest(&self) -> Self {
        let mut rest = self.clone();
        if let Some(greatest) = rest.bins.iter_mut().rev().find(|bin| **bin > 0) {
            *greatest -= 1;
        }
        rest
    }

    /// How many numbers were counted.
    pub fn count(&self) -> u64 {
        (self.bins.iter()).fold(0, |sum, bin| sum.saturating_add(*bin))
    }

    /// What all but one in `one_in` numbers do not exceed; none if there are none.
    pub fn all_but_one_in(&self, one_in: u64) -> Option<u64> {
        let count = self.count();
        // Rounded down: of 999 numbers none may exceed the figure for 1 in 1000.
        let mut above = count / one_in.max(1);
        let last = self.bins.iter().rposition(|bin| *bin > 0)?;
        for bin in (0..=last).rev() {
            if self.bins[bin] > above {
                return Some(Self::end_of(bin));
            }
            above -= self.bins[bin];
        }
        Some(Self::end_of(0))
    }

    /// The greatest; none if there are none.
    pub fn greatest(&self) -> Option<u64> {
        self.all_but_one_in(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gaps::{Gaps, ReadTimes};

    #[test]
    fn every_gap_is_in_the_bin_that_ends_after_it_and_at_most_a_sixteenth_later() {
        for micros in (0..2_000_000).chain([59_000_000]) {
            let bin = Gaps::bin_of(micros);
            assert!(micros < Gaps::end_of(bin), "{micros}");
            assert!(bin == 0 || micros >= Gaps::end_of(bin - 1), "{micros}");
            assert!(
                bin == 0 || Gaps::end_of(bin) <= micros + micros / 16 + 1,
                "{micros}"
            );
        }
        assert_eq!(Gaps::bin_of(u64::MAX), BINS - 1);
    }

    #[test]
    fn the_figures_of_a_thousand_gaps_are_those_of_the_longest() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.all_but_one_in(2), None);
        (0..989).for_each(|_| gaps.add(1000));
        (0..10).for_each(|_| gaps.add(5000));
        gaps.add(70_000);
        let within = |found: Option<u64>, micros: u64| {
            let found = found.unwrap();
            assert!(
                (micros..micros + micros / 16 + 64).contains(&found),
                "{found}"
            );
        };
        within(gaps.all_but_one_in(2), 1000);
        within(gaps.all_but_one_in(100), 5000);
        within(gaps.all_but_one_in(1000), 5000);
        within(gaps.greatest(), 70_000);
        within(gaps.without_greatest().greatest(), 5000);
        let mut later = gaps.clone();
        later.add(30_000);
        assert_eq!(later.since(&gaps).count(), 1);
        within(later.since(&gaps).greatest(), 30_000);
    }

    #[test]
    fn a_read_time_has_an_eighth_of_a_power_of_two_from_16_ns_to_a_minute() {
        for ns in (0..1_000_000).chain([60_000_000_000]) {
            let end = ReadTimes::end_of(ReadTimes::bin_of(ns));
            assert!(
                (ns + 1..=(ns + ns / 8 + 2).max(16)).contains(&end),
                "{ns}: {end}"
            );
        }
        assert_eq!(ReadTimes::bin_of(u64::MAX), BINS - 1);
    }
}
