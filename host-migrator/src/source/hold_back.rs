// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether to send pages that nobody has hinted yet, or to hold back for hints that are under way.
//!
//! A sender that never waits sends most free pages just before their hint arrives; one that waits for
//! the guest may wait for ever. So rates are compared: as long as hints remove more bytes a second than
//! the channel sends, sending is the slower way to get done.

use std::time::{Duration, Instant};

use spec::PAGE_SIZE;
use spec::hint_map::HintPhase;

/// Hints are counted over this time: long enough for a guest whose thread is preempted once.
const WINDOW: Duration = Duration::from_millis(10);
/// The longest grace for the guest's first answer.
const LONGEST_GRACE: Duration = Duration::from_millis(20);
/// The part of the time for sending everything that the grace may take: a silent guest costs at most 2 %.
const GRACE_SHARE: f64 = 0.02;

/// What is known about a round when it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundOutlook {
    /// The first round: the guest has not been asked before.
    pub(crate) first: bool,
    /// Pages to be sent.
    pub(crate) pending: u64,
    /// Pages of the guest's memory.
    pub(crate) total: u64,
    /// Bytes a second that the channel takes.
    pub(crate) bandwidth: f64,
}

/// Decides for one epoch.
///
/// Holding back is bounded by itself: a window is waited through only if the hints of the window before
/// it removed more than the channel would have sent, so what a wasted window costs was gained before.
#[derive(Debug)]
pub(crate) struct HoldBack {
    opened: Instant,
    grace: Duration,
    /// Hints a window that are worth waiting for.
    worthwhile: u64,
    window: Option<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    hinted: u64,
    wait: bool,
}

impl HoldBack {
    /// For an epoch that was opened at `now`.
    pub(crate) fn new(now: Instant, outlook: RoundOutlook) -> Self {
        let sending = outlook.pending as f64 * PAGE_SIZE as f64 / outlook.bandwidth;
        let grace = if outlook.first {
            Duration::try_from_secs_f64(sending * GRACE_SHARE).unwrap_or(LONGEST_GRACE)
        } else {
            Duration::ZERO
        };
        // The guest hints all its free pages, also those that were never sent or are at the destination
        // already. In later rounds only the pending part of the memory gains by it.
        let useful = outlook.pending as f64 / outlook.total.max(1) as f64;
        let sent_in_window = outlook.bandwidth * WINDOW.as_secs_f64() / PAGE_SIZE as f64;
        Self {
            opened: now,
            grace: grace.min(LONGEST_GRACE),
            worthwhile: (sent_in_window / useful.max(f64::MIN_POSITIVE)) as u64,
            window: None,
        }
    }

    /// Whether to wait at `now`, where the guest is in `phase` and has hinted `hinted` pages.
    pub(crate) fn wait(&mut self, now: Instant, phase: HintPhase, hinted: u64) -> bool {
        match phase {
            HintPhase::Requested => now.saturating_duration_since(self.opened) < self.grace,
            HintPhase::Running => self.wait_for_hints(now, hinted),
            HintPhase::Closed | HintPhase::Finished | HintPhase::Done => false,
        }
    }

    fn wait_for_hints(&mut self, now: Instant, hinted: u64) -> bool {
        let window = self.window.get_or_insert(Window {
            began: now,
            hinted,
            // The guest has just answered: its first hints are worth one window.
            wait: true,
        });
        if now.saturating_duration_since(window.began) >= WINDOW {
            *window = Window {
                began: now,
                hinted,
                wait: hinted.saturating_sub(window.hinted) > self.worthwhile,
            };
        }
        window.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// 256 Mi pages a second and so on: a channel that sends 1000 pages a millisecond.
    const BANDWIDTH: f64 = 1000.0 * 1000.0 * PAGE_SIZE as f64;

    fn all_of(total: u64) -> RoundOutlook {
        RoundOutlook {
            first: true,
            pending: total,
            total,
            bandwidth: BANDWIDTH,
        }
    }

    /// Milliseconds waited of 1000, with hints that arrive as `hinted` says.
    fn waited(outlook: RoundOutlook, phase: HintPhase, hinted: impl Fn(u64) -> u64) -> u64 {
        let start = Instant::now();
        let mut hold_back = HoldBack::new(start, outlook);
        let ms = |i: u64| start + MS * i as u32;
        (0..1000)
            .map(|i| u64::from(hold_back.wait(ms(i), phase, hinted(i))))
            .sum()
    }

    #[test]
    fn a_silent_guest_costs_at_most_a_fiftieth_and_20_ms() {
        let silent = |total| waited(all_of(total), HintPhase::Requested, |_| 0);
        assert_eq!(silent(1000 * 1000 * 1000), 20);
        assert_eq!(silent(100 * 1000), 2);
        let later = RoundOutlook {
            first: false,
            ..all_of(1 << 30)
        };
        assert_eq!(waited(later, HintPhase::Requested, |_| 0), 0);
    }

    #[test]
    fn hints_faster_than_the_channel_are_waited_for() {
        assert_eq!(
            waited(all_of(1 << 30), HintPhase::Running, |ms| ms * 1100),
            1000
        );
    }

    #[test]
    fn hints_slower_than_the_channel_are_not() {
        assert_eq!(
            waited(all_of(1 << 30), HintPhase::Running, |ms| ms * 900),
            10
        );
    }

    #[test]
    fn no_pattern_of_hints_makes_waiting_cost_more_than_it_gained_and_one_window() {
        // Bursts of one good window, then a bad one.
        let burst = |ms: u64| (ms / 20) * 11_000 + (ms % 20).min(10) * 1100;
        let waited = waited(all_of(1 << 30), HintPhase::Running, burst);
        assert!(waited * 1000 <= burst(999) + 10 * 1000 + 11_000, "{waited}");
    }

    #[test]
    fn in_a_late_round_only_hints_for_pending_pages_count() {
        let late = RoundOutlook {
            first: false,
            pending: 1 << 20,
            total: 1 << 30,
            bandwidth: BANDWIDTH,
        };
        assert_eq!(waited(late, HintPhase::Running, |ms| ms * 100_000), 10);
        assert_eq!(waited(late, HintPhase::Running, |ms| ms * 2_000_000), 1000);
    }

    #[test]
    fn a_guest_that_has_finished_is_not_waited_for() {
        assert_eq!(
            waited(all_of(1 << 30), HintPhase::Finished, |ms| ms * 9000),
            0
        );
    }
}
