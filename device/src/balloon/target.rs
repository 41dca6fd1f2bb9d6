// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon's target: how many pages the guest is asked to give up.
//!
//! This is what the host wants. If the balloon follows the guest, the target shrinks while the guest's statistics show a
//! shortage of memory, and grows back slowly afterwards.
//!
//! ```text
//!           short of memory: a step down             calm for a while, with room for it: a smaller step up
//! wanted ─────────────────────────────────► less ──────────────────────────────────────────────► wanted
//! ```
//!
//! There is no I/O here, and time comes only with the statistics.

use spec::PAGE_SIZE;
use spec::balloon::stat;

use crate::balloon::statistics::Statistics;
use crate::guest::Guest;

/// A step down is this fraction of the wanted size.
const DOWN: u32 = 8;
/// A step up is this fraction of the wanted size.
const UP: u32 = 32;
/// How many statistics in a row must show no shortage before the balloon grows.
const CALM: u32 = 3;
/// The guest is short of memory if it has more major page faults a second: it reads its programs from disk again and
/// again.
const MAJOR_FAULTS_A_SECOND: f64 = 200.0;

/// When the balloon gives memory back to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoShrink {
    /// The balloon shrinks when the guest has fewer bytes available than this, or stalls for lack of memory.
    pub keep_available: u64,
}

/// The target, in pages of 4 KiB.
#[derive(Debug, Default)]
pub struct Target {
    wanted: u32,
    pages: u32,
    auto_shrink: Option<AutoShrink>,
    last: Option<Statistics>,
    calm: u32,
}

impl Target {
    /// Pages to ask for.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages that the host wants.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// Sets what the host wants. The target is this at first, and shrinks if the guest is short of memory.
    pub fn want(&mut self, pages: u32) {
        self.wanted = pages;
        self.start_anew();
    }

    /// Goes on from another device's target.
    pub fn restore(&mut self, wanted: u32, pages: u32) {
        self.want(wanted);
        self.pages = pages;
    }

    /// Follows the guest's statistics from now on, or stops that.
    pub fn set_auto_shrink(&mut self, auto_shrink: Option<AutoShrink>) {
        self.auto_shrink = auto_shrink;
        self.start_anew();
    }

    /// Forgets the guest's statistics.
    pub fn start_anew(&mut self) {
        self.pages = self.wanted;
        self.last = None;
        self.calm = 0;
    }

    /// The guest, with `actual` pages in the balloon, has sent `statistics`.
    pub fn hear(&mut self, statistics: &Statistics, actual: u32) {
        let Some(AutoShrink { keep_available }) = self.auto_shrink else {
            return;
        };
        let available = statistics.value(stat::AVAILABLE_MEMORY);
        let stalled = self
            .last
            .replace(statistics.clone())
            .is_some_and(|before| has_stalled(&before, statistics));
        if stalled || available.is_some_and(|bytes| bytes < keep_available) {
            self.calm = 0;
            // The step goes down from the balloon's real size if that is smaller than its target: otherwise the guest
            // would get nothing back.
            self.pages = self
                .pages
                .min(actual)
                .saturating_sub(step(self.wanted, DOWN));
            return;
        }
        self.calm += 1;
        let up = step(self.wanted, UP).min(self.wanted.saturating_sub(self.pages));
        let room = available
            .is_none_or(|bytes| bytes.saturating_sub(u64::from(up) * PAGE_SIZE) >= keep_available);
        if self.calm >= CALM && room {
            self.pages += up;
        }
    }

    /// Computes how many pages the guest is asked for: the target, but at most all its memory.
    pub fn publish(&self, guest: &mut Guest) {
        let target = match u32::try_from(guest.pages()) {
            // Before there is memory nothing is known about it.
            Ok(0) | Err(_) => self.pages,
            Ok(there) => self.pages.min(there),
        };
        guest.ask_for_pages(target);
    }
}

/// Whether programs were ended or had to wait for memory between two statistics.
fn has_stalled(before: &Statistics, now: &Statistics) -> bool {
    let rise = |tag| match (before.value(tag), now.value(tag)) {
        (Some(before), Some(now)) => now.saturating_sub(before),
        _ => 0,
    };
    let seconds = now
        .arrived()
        .saturating_duration_since(before.arrived())
        .as_secs_f64();
    rise(stat::OOM_KILLS) > 0
        || rise(stat::ALLOCATION_STALLS) > 0
        || rise(stat::MAJOR_FAULTS) as f64 > MAJOR_FAULTS_A_SECOND * seconds.max(1.0)
}

fn step(wanted: u32, part: u32) -> u32 {
    wanted.div_ceil(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    const GIB: u64 = 1 << 30;
    /// Wanted in these tests: 1 GiB.
    const WANTED: u32 = 262_144;
    const PLENTY: (u16, u64) = (stat::AVAILABLE_MEMORY, 2 * GIB);
    const SHORT: (u16, u64) = (stat::AVAILABLE_MEMORY, GIB / 8);

    /// A target that keeps 256 MiB available, and a clock.
    struct Follower {
        target: Target,
        now: Instant,
    }

    impl Follower {
        fn new() -> Self {
            let mut target = Target::default();
            target.want(WANTED);
            target.set_auto_shrink(Some(AutoShrink {
                keep_available: GIB / 4,
            }));
            Self {
                target,
                now: Instant::now(),
            }
        }

        /// Statistics a second later, from a guest that is as far as it was asked to be.
        fn hear(&mut self, values: &[(u16, u64)]) -> u32 {
            self.now += Duration::from_secs(1);
            let statistics = Statistics::new(values.iter().copied(), self.now);
            let actual = self.target.pages();
            self.target.hear(&statistics, actual);
            self.target.pages()
        }
    }

    #[test]
    fn without_auto_shrink_nothing_moves_the_target() {
        let mut it = Follower::new();
        it.target.set_auto_shrink(None);
        assert_eq!(it.hear(&[SHORT]), WANTED);
    }

    #[test]
    fn a_guest_that_is_short_gets_memory_step_by_step_down_to_an_empty_balloon() {
        let mut it = Follower::new();
        let seen: Vec<u32> = (0..9).map(|_| it.hear(&[SHORT])).collect();
        let expected: Vec<u32> = (0..8).rev().map(|eighths| WANTED / 8 * eighths).collect();
        assert_eq!(seen[..8], expected);
        assert_eq!(seen[8], 0);
        assert_eq!(it.target.wanted(), WANTED);
    }

    #[test]
    fn it_grows_back_slower_than_it_shrank_and_no_further_than_wanted() {
        let mut it = Follower::new();
        let low = it.hear(&[SHORT]);
        for _ in 1..CALM {
            assert_eq!(it.hear(&[PLENTY]), low, "too early");
        }
        let next = it.hear(&[PLENTY]);
        assert!(low < next && next - low < WANTED - low);
        for _ in 0..2 * UP {
            it.hear(&[PLENTY]);
        }
        assert_eq!(it.target.pages(), WANTED);
    }

    #[test]
    fn it_does_not_grow_where_that_would_make_the_guest_short_again() {
        let mut it = Follower::new();
        let low = it.hear(&[SHORT]);
        let barely = u64::from(WANTED / UP) * PAGE_SIZE + GIB / 4 - 1;
        for _ in 0..10 {
            assert_eq!(it.hear(&[(stat::AVAILABLE_MEMORY, barely)]), low);
        }
        assert!(it.hear(&[(stat::AVAILABLE_MEMORY, barely + 1)]) > low);
    }

    #[test]
    fn what_counts_is_that_stalls_rise_not_how_many_there_were() {
        for tag in [stat::OOM_KILLS, stat::ALLOCATION_STALLS] {
            let mut it = Follower::new();
            assert_eq!(it.hear(&[PLENTY, (tag, 100)]), WANTED);
            assert_eq!(it.hear(&[PLENTY, (tag, 100)]), WANTED);
            assert!(it.hear(&[PLENTY, (tag, 101)]) < WANTED);
        }
        let mut it = Follower::new();
        let fault = |count| [PLENTY, (stat::MAJOR_FAULTS, count)];
        it.hear(&fault(0));
        assert_eq!(it.hear(&fault(200)), WANTED);
        assert!(it.hear(&fault(1000)) < WANTED);
    }

    #[test]
    fn a_counter_that_falls_or_goes_missing_is_no_shortage() {
        let mut it = Follower::new();
        it.hear(&[PLENTY, (stat::OOM_KILLS, u64::MAX)]);
        assert_eq!(it.hear(&[PLENTY, (stat::OOM_KILLS, 0)]), WANTED);
        assert_eq!(it.hear(&[]), WANTED);
        assert_eq!(it.hear(&[PLENTY, (stat::OOM_KILLS, 5)]), WANTED);
    }

    #[test]
    fn a_guest_that_lags_behind_is_asked_for_less_than_it_has() {
        let mut it = Follower::new();
        let statistics = Statistics::new([SHORT], it.now);
        it.target.hear(&statistics, WANTED / 2);
        assert_eq!(it.target.pages(), WANTED / 2 - WANTED / 8);
    }

    #[test]
    fn a_new_wish_counts_at_once() {
        let mut it = Follower::new();
        it.hear(&[SHORT]);
        it.target.want(2 * WANTED);
        assert_eq!(it.target.pages(), 2 * WANTED);
        it.hear(&[SHORT]);
        it.target.set_auto_shrink(None);
        assert_eq!(it.target.pages(), 2 * WANTED);
    }
}
