// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decides whether to send pages of which nothing is known yet, or to hold back for hints.
//!
//! A sender that never waits sends most free pages just before their hint arrives. A sender that waits for the guest may
//! wait for ever. So this code compares rates: while hints remove more pages a second than the link sends, waiting is
//! faster than sending. It also limits the total wait to the time that hints have saved so far, plus a small
//! [`HoldBack::advance`]. `spec/sending-order.md` derives the bounds.
//!
//! This code has no clock and no map. Callers pass time and counts in, so the same code decides in a migration and in a
//! simulation (`benches/sending_order.rs`).

use std::time::Duration;

use spec::hint_map::HintPhase;

/// The time over which hints are counted: long enough for a guest whose thread is preempted once.
const WINDOW: Duration = Duration::from_millis(10);
/// Each older window counts less by this factor. Several windows are needed because hints come in blocks of 4 MiB, and a
/// slow link sends less than one block in a window.
const MEMORY: f64 = 7.0 / 8.0;
/// In a short round the window is half the advance, but no shorter than this.
const SHORTEST_WINDOW: Duration = Duration::from_millis(1);
/// The time it takes to look at one word of the bitmap. An exact count looks at all words, and a window lasts at least
/// ten times as long as that.
const LOOK: Duration = Duration::from_nanos(5);
/// The longest wait in a round before hints have saved any time.
const LONGEST_ADVANCE: Duration = Duration::from_millis(20);
/// The same limit as a part of the time for sending everything: a silent guest costs at most 2 %.
const ADVANCE_SHARE: f64 = 0.02;
/// If no more than this part of the pending pages can still be hinted, the sender does not wait.
const LEAST_HOPE: f64 = 0.02;

/// What is known about a round when it begins.
#[derive(Clone, Copy, Debug)]
pub struct Outlook {
    /// Pages to be sent.
    pub pending: u64,
    /// Pages a second that the link takes, as far as is known.
    pub pages_per_second: f64,
    /// Words of 64 pages in the bitmap.
    pub words: u64,
    /// Pages that are free according to the guest, if it said so: as many hints may come.
    pub free: Option<u64>,
    /// Whether the guest was asked in the last round and never answered.
    pub silent: bool,
}

/// What is seen at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The time since the epoch was opened. It never decreases.
    pub now: Duration,
    /// How far the guest is.
    pub phase: HintPhase,
    /// Pages that it has hinted, useful or not.
    pub hinted: u64,
    /// Pages a second that the link takes.
    pub pages_per_second: f64,
}

/// Decides for one epoch.
#[derive(Debug)]
pub struct HoldBack {
    advance: Duration,
    window_length: Duration,
    pending: u64,
    free: Option<u64>,
    waited: Duration,
    /// When the current wait began.
    waiting: Option<Duration>,
    window: Option<Window>,
    /// Pages that hints have removed, when they were last counted.
    removed: u64,
    lately: Lately,
}

/// The last windows. Older windows count less.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    seconds: f64,
    /// Pages hinted, useful or not.
    hinted: f64,
    /// Pages that hints have removed, as far as they were counted.
    removed: f64,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Duration,
    hinted: u64,
    wait: bool,
}

impl HoldBack {
    /// For an epoch that has just been opened.
    pub fn new(outlook: Outlook) -> Self {
        let sending = outlook.pending as f64 / outlook.pages_per_second.max(f64::MIN_POSITIVE);
        let advance =
            Duration::try_from_secs_f64(sending * ADVANCE_SHARE).unwrap_or(LONGEST_ADVANCE);
        let advance = advance.min(LONGEST_ADVANCE);
        let window = (advance / 2).clamp(SHORTEST_WINDOW, WINDOW);
        let look = LOOK.saturating_mul(u32::try_from(outlook.words).unwrap_or(u32::MAX));
        Self {
            advance: if outlook.silent {
                Duration::ZERO
            } else {
                advance
            },
            window_length: window.max(look.saturating_mul(10)),
            pending: outlook.pending,
            free: outlook.free,
            waited: Duration::ZERO,
            waiting: None,
            window: None,
            removed: 0,
            lately: Lately::default(),
        }
    }

    /// The longest wait before hints have saved any time.
    pub fn advance(&self) -> Duration {
        self.advance
    }

    /// Whether to wait, given what is `seen`. `removed` counts the pages of the round that hints have removed.
    pub fn wait(&mut self, seen: Seen, removed: impl FnOnce() -> u64) -> bool {
        self.goes_on(seen.now);
        let worth_it = match seen.phase {
            HintPhase::Requested => true,
            HintPhase::Running => self.is_faster(seen, removed),
            HintPhase::Closed | HintPhase::Finished | HintPhase::Done => false,
        };
        let wait =
            worth_it && self.is_gained(seen.pages_per_second) && self.is_hopeful(seen.hinted);
        self.waiting = wait.then_some(seen.now);
        wait
    }

    /// Ends a wait at `now`, whatever [`HoldBack::wait`] has returned, because the next page is known to be needed.
    pub fn goes_on(&mut self, now: Duration) {
        if let Some(since) = self.waiting.take() {
            self.waited += now.saturating_sub(since);
        }
    }

    /// Whether hints have lately removed more than the link would have sent meanwhile.
    fn is_faster(&mut self, seen: Seen, removed: impl FnOnce() -> u64) -> bool {
        let Seen { now, hinted, .. } = seen;
        let window = self.window.get_or_insert(Window {
            began: now,
            hinted,
            // The guest has just answered: its first hints are worth one window.
            wait: true,
        });
        let length = now.saturating_sub(window.began);
        if length >= self.window_length {
            let lately = &mut self.lately;
            lately.seconds = lately.seconds * MEMORY + length.as_secs_f64();
            lately.hinted = lately.hinted * MEMORY + hinted.saturating_sub(window.hinted) as f64;
            lately.removed *= MEMORY;
            let sent = lately.seconds * seen.pages_per_second;
            if lately.hinted > sent {
                // They may be useless: for pages that were sent, or that need not be sent anyway.
                let before = std::mem::replace(&mut self.removed, removed());
                let new = self.removed.saturating_sub(before) as f64;
                lately.removed = (lately.removed + new).min(lately.hinted);
            }
            *window = Window {
                began: now,
                hinted,
                wait: lately.removed > sent,
            };
        }
        window.wait
    }

    /// Whether the wait so far is shorter than the time that hints have saved, plus the advance.
    fn is_gained(&self, pages_per_second: f64) -> bool {
        let saved = self.removed as f64 / pages_per_second.max(f64::MIN_POSITIVE);
        self.waited.as_secs_f64() < self.advance.as_secs_f64() + saved
    }

    /// Whether the guest may still have many pages to hint.
    fn is_hopeful(&self, hinted: u64) -> bool {
        let least = self.pending as f64 * LEAST_HOPE;
        self.free
            .is_none_or(|free| free.saturating_sub(hinted) as f64 > least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// Pages a second: 1000 a millisecond.
    const RATE: f64 = 1e6;

    fn all_of(pending: u64) -> Outlook {
        Outlook {
            pending,
            pages_per_second: RATE,
            words: pending.div_ceil(64),
            free: None,
            silent: false,
        }
    }

    /// For how many of 1000 milliseconds it waits. Hints arrive as `hinted` says, and one in `useless + 1` of them
    /// removes a page.
    fn waited(
        outlook: Outlook,
        phase: HintPhase,
        useless: u64,
        hinted: impl Fn(u64) -> u64,
    ) -> u64 {
        let mut hold_back = HoldBack::new(outlook);
        (0..1000)
            .map(|ms| {
                let hints = hinted(ms);
                let removed = || hints / (useless + 1);
                let seen = Seen {
                    now: MS * ms as u32,
                    phase,
                    hinted: hints,
                    pages_per_second: RATE,
                };
                u64::from(hold_back.wait(seen, removed))
            })
            .sum()
    }

    #[test]
    fn a_silent_guest_costs_at_most_a_fiftieth_and_20_ms() {
        let silent = |outlook| waited(outlook, HintPhase::Requested, 0, |_| 0);
        assert_eq!(silent(all_of(1000 * 1000 * 1000)), 20);
        assert_eq!(silent(all_of(100 * 1000)), 2);
        let known_to_be = Outlook {
            silent: true,
            ..all_of(1 << 30)
        };
        assert_eq!(silent(known_to_be), 0);
    }

    #[test]
    fn hints_faster_than_the_link_are_waited_for() {
        let fast = |useless| waited(all_of(1 << 22), HintPhase::Running, useless, |ms| ms * 1100);
        assert_eq!(fast(0), 1000);
        assert!(fast(9) <= 20, "what removes little is not worth it");
    }

    #[test]
    fn hints_slower_than_the_link_are_not() {
        let slow = |pages| waited(all_of(pages), HintPhase::Running, 0, |ms| ms * 900);
        assert_eq!(slow(1 << 22), 10);
        assert_eq!(slow(10_000), 1, "the first window, cut to a fiftieth");
    }

    #[test]
    fn no_pattern_of_hints_makes_waiting_cost_more_than_it_saved_and_the_advance() {
        // Bursts of one good window, then a bad one; and hints that are fast first, then stop for good.
        let bursts = |ms: u64| (ms / 20) * 11_000 + (ms % 20).min(10) * 1100;
        let once = |ms: u64| ms.min(30) * 5000;
        let patterns: [&dyn Fn(u64) -> u64; 2] = [&bursts, &once];
        for hinted in patterns {
            let waited = waited(all_of(1 << 22), HintPhase::Running, 0, hinted);
            assert!(waited <= hinted(999) / 1000 + 20, "{waited}");
        }
    }

    #[test]
    fn a_guest_that_has_nothing_left_to_hint_is_not_waited_for() {
        let told = |free| Outlook {
            free: Some(free),
            ..all_of(1 << 22)
        };
        let fast = |free| waited(told(free), HintPhase::Running, 0, |ms| ms * 2000);
        assert_eq!(fast(1 << 22), 1000);
        assert!((90..=110).contains(&fast(300_000)), "all but 2 % of 4 Mi");
        assert_eq!(waited(told(0), HintPhase::Requested, 0, |_| 0), 0);
    }

    #[test]
    fn a_guest_that_has_finished_is_not_waited_for() {
        let finished = waited(all_of(1 << 30), HintPhase::Finished, 0, |ms| ms * 9000);
        assert_eq!(finished, 0);
    }

    #[test]
    fn the_longer_it_takes_to_count_the_less_often_it_is_counted() {
        let mut huge = HoldBack::new(all_of(1 << 28));
        let mut counted = 0;
        for ms in 0..1000 {
            let hinted = u64::from(ms) * 1_000_000;
            let seen = Seen {
                now: MS * ms,
                phase: HintPhase::Running,
                hinted,
                pages_per_second: RATE,
            };
            huge.wait(seen, || {
                counted += 1;
                hinted
            });
        }
        assert!((3..=5).contains(&counted), "{counted}");
    }
}
