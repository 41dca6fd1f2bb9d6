// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast the channel is, and how fast it may be used.

use std::time::{Duration, Instant};

use spec::PAGE_SIZE;

use crate::pace::Pace;
use crate::sink::Carried;

/// The assumed speed of a channel before anything was measured, in bytes a second. It is high, so that no page is held
/// back for long because of a guess.
const ASSUMED: f64 = (1u64 << 30) as f64;
/// The most that socket buffers on the way take at once, unless an administrator has made them larger.
const BUFFERS: f64 = (16u64 << 20) as f64;
/// Each time this many bytes were measured, the older half of the measurement is dropped.
const MEMORY: f64 = (64u64 << 20) as f64;
/// Shorter pauses are added up until they reach this length, because short sleeps are inexact.
const SHORTEST_PAUSE: Duration = Duration::from_millis(2);
/// At most this much unused time is made up for, so that no burst follows a pause.
const LARGEST_CREDIT: Duration = Duration::from_millis(10);

/// The longest time in seconds that a section of several pages takes at the bandwidth limit: no second differs from the limit by more
/// than a section, which is 2 % of it. A page is not divided: below 200 KiB/s it takes longer.
const SECTION_TIME: f64 = 0.02;

/// Measures the channel and keeps to the bandwidth limit.
#[derive(Debug)]
pub(crate) struct Pacing {
    limit: Option<f64>,
    pace: Pace,
    bytes: f64,
    seconds: f64,
    /// What was sent without regard to the limit and waited for, at the end of each round.
    tried_bytes: f64,
    tried_seconds: f64,
    /// The end of a round was waited for, whether or not it had bytes.
    tried: bool,
    /// Bytes of pages as they are in memory, and as they were sent.
    content_bytes: f64,
    shrunk_bytes: f64,
}

/// Bytes a second, if there were any.
fn rate(bytes: f64, seconds: f64) -> Option<f64> {
    (bytes > 0.0 && seconds > 0.0).then(|| bytes / seconds)
}

impl Pacing {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self {
            // With a limit of 0 the migration would never end.
            limit: limit.map(|bytes| bytes.max(1) as f64),
            pace: Pace::new(LARGEST_CREDIT),
            bytes: 0.0,
            seconds: 0.0,
            tried_bytes: 0.0,
            tried_seconds: 0.0,
            tried: false,
            content_bytes: 0.0,
            shrunk_bytes: 0.0,
        }
    }

    /// The limit is another one from now on. What was sent before has had its time.
    pub(crate) fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit.map(|bytes| bytes.max(1) as f64);
        self.pace = Pace::new(LARGEST_CREDIT);
    }

    /// Bytes a second that go through: as much as the channel takes, or the limit. Before anything was measured it is
    /// an assumption.
    pub(crate) fn bandwidth(&self) -> f64 {
        let measured = rate(self.bytes, self.seconds).unwrap_or(ASSUMED);
        self.limit.map_or(measured, |limit| limit.min(measured))
    }

    /// As [`Pacing::bandwidth`]. `None` until more was sent than socket buffers take at once, or the end of a round was waited for:
    /// of a guest of zeros a file gets no byte at all.
    pub(crate) fn measured(&self) -> Option<f64> {
        let enough = self.limit.map_or(BUFFERS, |limit| limit.min(BUFFERS));
        (self.bytes >= enough || self.tried).then(|| self.bandwidth())
    }

    /// Bytes a second that the channel would take without the limit, once that was measured.
    pub(crate) fn unlimited(&self) -> Option<f64> {
        let tried = rate(self.tried_bytes, self.tried_seconds);
        let tried = tried.or(self.tried.then_some(ASSUMED));
        match self.limit {
            None => self.measured(),
            // What was sent at the limit mostly found empty buffers, and looks too fast.
            Some(_) => {
                tried.map(|tried| rate(self.bytes, self.seconds).unwrap_or(tried).min(tried))
            }
        }
    }

    /// Notes that the last `bytes` of a round were at the destination after `took`, an answer's way not counted.
    pub(crate) fn tried(&mut self, bytes: u64, took: Duration) {
        self.tried = true;
        // The last rounds count: a few pages say little.
        self.tried_bytes = self.tried_bytes / 2.0 + bytes as f64;
        self.tried_seconds =
            self.tried_seconds / 2.0 + took.as_secs_f64().max(bytes as f64 / ASSUMED);
    }

    /// Bytes that a section may have at most.
    pub(crate) fn section_bytes(&self) -> u64 {
        self.limit
            .map_or(u64::MAX, |limit| (limit * SECTION_TIME) as u64)
    }

    /// The same in pages of content.
    pub(crate) fn pages_per_second(&self) -> f64 {
        self.bandwidth() / self.page_bytes()
    }

    /// Bytes that a page takes on its way. Fewer than it has in memory, if pages were compressed.
    pub(crate) fn page_bytes(&self) -> f64 {
        let shrink = rate(self.shrunk_bytes, self.content_bytes).unwrap_or(1.0);
        PAGE_SIZE as f64 * shrink
    }

    /// Bytes that sections of `plain` bytes are expected to take on their way.
    pub(crate) fn shrunk(&self, plain: u64) -> u64 {
        (plain as f64 * self.page_bytes() / PAGE_SIZE as f64) as u64
    }

    /// Notes what became of pages on their way.
    pub(crate) fn carried(&mut self, pages: Carried) {
        let content = (pages.pages * PAGE_SIZE) as f64;
        self.content_bytes += content;
        self.shrunk_bytes += content * pages.shrink();
        if self.content_bytes > 2.0 * MEMORY {
            self.content_bytes /= 2.0;
            self.shrunk_bytes /= 2.0;
        }
    }

    /// Notes that `bytes` were sent in `took`.
    pub(crate) fn sent(&mut self, bytes: u64, took: Duration) {
        self.bytes += bytes as f64;
        self.seconds += took.as_secs_f64();
        if self.bytes > 2.0 * MEMORY {
            self.bytes /= 2.0;
            self.seconds /= 2.0;
        }
    }

    /// How long to pause after `bytes` more at `now`.
    pub(crate) fn pause(&mut self, now: Instant, bytes: u64) -> Option<Duration> {
        let limit = self.limit?;
        let pause = self.pace.after(now, bytes, limit);
        (pause >= SHORTEST_PAUSE).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_without_a_byte_shows_that_the_sink_takes_what_there_is() {
        for limit in [None, Some(1 << 20)] {
            let mut pacing = Pacing::new(limit);
            assert_eq!(pacing.unlimited(), None);
            pacing.tried(0, Duration::from_millis(1));
            assert_eq!(pacing.unlimited(), Some(ASSUMED));
        }
    }

    #[test]
    fn pauses_make_up_for_what_was_sent_too_fast() {
        let mut pacing = Pacing::new(Some(1_000_000));
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now += pacing.pause(now, 100_000).unwrap_or_default();
        }
        let seconds = (now - start).as_secs_f64();
        assert!((9.9..=10.1).contains(&seconds), "{seconds}");
    }

    #[test]
    fn the_limit_is_kept_within_two_percent_from_32_kib_to_1_gb_a_second() {
        for limit in [32 << 10, 1 << 20, 100_000_000, 1_000_000_000] {
            let mut pacing = Pacing::new(Some(limit));
            let section = (pacing.section_bytes() / PAGE_SIZE).clamp(1, 256) * PAGE_SIZE + 64;
            let start = Instant::now();
            let (mut now, mut sent) = (start, 0);
            while now - start < Duration::from_secs(20) {
                // What it takes to send at all, and sleeps that end late.
                now += Duration::from_nanos(section / 3);
                sent += section;
                let late = Duration::from_micros(sent % 4000);
                now += pacing
                    .pause(now, section)
                    .map_or(Duration::ZERO, |pause| pause + late);
            }
            let kept = sent as f64 / (now - start).as_secs_f64() / limit as f64;
            assert!((0.98..=1.02).contains(&kept), "{kept} of {limit}");
        }
    }

    #[test]
    fn a_section_takes_a_fiftieth_of_a_second_at_the_limit() {
        assert_eq!(Pacing::new(Some(32 << 10)).section_bytes(), 655);
        assert_eq!(Pacing::new(Some(50 << 20)).section_bytes(), 1 << 20);
        assert_eq!(Pacing::new(None).section_bytes(), u64::MAX);
    }

    #[test]
    fn unused_time_is_no_licence_for_a_burst() {
        let mut pacing = Pacing::new(Some(1_000_000));
        let start = Instant::now();
        pacing.pause(start, 1000);
        let later = start + Duration::from_secs(60);
        let pause = pacing.pause(later, 1_000_000).unwrap();
        assert!(pause >= Duration::from_millis(980), "{pause:?}");
    }

    #[test]
    fn the_measure_follows_the_channel() {
        let mut pacing = Pacing::new(None);
        assert_eq!(pacing.bandwidth(), ASSUMED);
        pacing.sent(1 << 20, Duration::from_millis(1));
        assert_eq!(pacing.measured(), None, "a socket buffer has taken it");
        for _ in 0..1000 {
            pacing.sent(1 << 20, Duration::from_millis(1));
        }
        for _ in 0..1000 {
            pacing.sent(1 << 20, Duration::from_millis(10));
        }
        let slow = f64::from(1 << 20) * 100.0;
        assert!((slow..slow * 1.05).contains(&pacing.bandwidth()));
        assert_eq!(Pacing::new(Some(5)).bandwidth(), 5.0);
    }

    #[test]
    fn pages_that_shrink_on_their_way_are_faster() {
        let mut pacing = Pacing::new(Some(1 << 20));
        pacing.sent(1 << 30, Duration::from_secs(1));
        assert_eq!(pacing.pages_per_second(), 256.0);
        assert_eq!(pacing.shrunk(4000), 4000);
        pacing.carried(Carried {
            pages: 1000,
            compressed_pages: 1000,
            compressed_bytes: 1000 * PAGE_SIZE / 4,
        });
        assert_eq!(pacing.pages_per_second(), 1024.0);
        assert_eq!(pacing.shrunk(4000), 1000);
        // Later ones do not shrink.
        for _ in 0..1000 {
            pacing.carried(Carried {
                pages: 1000,
                ..Carried::default()
            });
        }
        assert!(pacing.pages_per_second() < 257.0);
    }
}
