// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How evenly a guest runs: the gaps between the beats of its vCPUs.
//!
//! A vCPU of the bare guest beats as soon as a millisecond has passed since its last beat. A longer gap is time that the guest
//! did not get, or spent waiting for the host. Gaps are counted in bins, each a sixteenth of a power of two wide, so that
//! a figure that comes from them is at most 6 percent too large.

/// Microseconds between two beats of a vCPU that misses nothing.
pub const BEAT_MICROS: u64 = 1000;
/// How many bins there are.
pub const BINS: usize = 256;
/// The first bin ends at 2 to this power, in microseconds.
const FIRST_BITS: u32 = 10;
/// Bins in each power of two: 2 to this power.
const FINE_BITS: u32 = 4;

/// The bin of a gap.
pub const fn bin_of(micros: u64) -> usize {
    if micros >> FIRST_BITS == 0 {
        return 0;
    }
    let bits = micros.ilog2();
    let fine = (micros >> (bits - FINE_BITS)) as usize & ((1 << FINE_BITS) - 1);
    let bin = 1 + (((bits - FIRST_BITS) as usize) << FINE_BITS) + fine;
    if bin < BINS { bin } else { BINS - 1 }
}

/// The end of a bin, in microseconds. The last one has no end, and this is where it would be.
pub const fn end_of(bin: usize) -> u64 {
    let Some(above) = bin.checked_sub(1) else {
        return 1 << FIRST_BITS;
    };
    let power = (above >> FINE_BITS) as u32;
    let fine = (above as u64 & ((1 << FINE_BITS) - 1)) + 1;
    ((1 << FINE_BITS) + fine) << (FIRST_BITS - FINE_BITS + power)
}

/// Gaps, counted in bins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gaps {
    bins: [u64; BINS],
}

impl Default for Gaps {
    fn default() -> Self {
        Self { bins: [0; BINS] }
    }
}

impl Gaps {
    /// The gaps that `bins` counts.
    pub const fn new(bins: [u64; BINS]) -> Self {
        Self { bins }
    }

    /// Counts another gap.
    pub fn add(&mut self, micros: u64) {
        self.bins[bin_of(micros)] += 1;
    }

    /// Counts the gaps of `other`, too.
    pub fn merge(&mut self, other: &Self) {
        for (bin, more) in self.bins.iter_mut().zip(other.bins) {
            *bin = bin.saturating_add(more);
        }
    }

    /// The gaps that were counted after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            bins: core::array::from_fn(|bin| self.bins[bin].saturating_sub(earlier.bins[bin])),
        }
    }

    /// All of them but the longest.
    #[must_use]
    pub fn without_longest(&self) -> Self {
        let mut rest = self.clone();
        if let Some(longest) = rest.bins.iter_mut().rev().find(|bin| **bin > 0) {
            *longest -= 1;
        }
        rest
    }

    /// How many gaps were counted.
    pub fn count(&self) -> u64 {
        (self.bins.iter()).fold(0, |sum, bin| sum.saturating_add(*bin))
    }

    /// The microseconds that all but one in `one_in` gaps do not exceed; none if there are no gaps.
    pub fn all_but_one_in(&self, one_in: u64) -> Option<u64> {
        let count = self.count();
        // Rounded down: of 999 gaps none may exceed the figure for 1 in 1000.
        let mut above = count / one_in.max(1);
        let last = self.bins.iter().rposition(|bin| *bin > 0)?;
        for bin in (0..=last).rev() {
            if self.bins[bin] > above {
                return Some(end_of(bin));
            }
            above -= self.bins[bin];
        }
        Some(end_of(0))
    }

    /// The longest gap in microseconds; none if there are no gaps.
    pub fn longest(&self) -> Option<u64> {
        self.all_but_one_in(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_is_in_the_bin_that_ends_after_it_and_at_most_a_sixteenth_later() {
        for micros in (0..2_000_000).chain([59_000_000]) {
            let bin = bin_of(micros);
            assert!(micros < end_of(bin), "{micros}");
            assert!(bin == 0 || micros >= end_of(bin - 1), "{micros}");
            assert!(
                bin == 0 || end_of(bin) <= micros + micros / 16 + 1,
                "{micros}"
            );
        }
        assert_eq!(bin_of(u64::MAX), BINS - 1);
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
        within(gaps.longest(), 70_000);
        within(gaps.without_longest().longest(), 5000);
        let mut later = gaps.clone();
        later.add(30_000);
        assert_eq!(later.since(&gaps).count(), 1);
        within(later.since(&gaps).longest(), 30_000);
    }
}
