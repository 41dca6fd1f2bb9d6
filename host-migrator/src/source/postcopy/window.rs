// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many sections that nobody waits for may be on their way on a lane.
//!
//! A page that is on its way cannot be asked for: whoever touches it waits for all that is before it in the buffers of both sides
//! and of the network. With the buffers full that is many milliseconds. So a lane sends no more than keeps it busy. The destination says
//! of each section that it is in memory; as long as this word comes back as soon as it ever did, no section waits for another, and
//! the window grows. When the word is late, sections wait in a queue, and the window shrinks. TCP Vegas does the same with packets.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Sections that are on their way at first, and at least.
const LEAST: f64 = 2.0;
/// The most, for a peer that answers without having placed anything.
const MOST: f64 = 4096.0;
/// If fewer sections wait in queues, the window grows.
const FEW_WAIT: f64 = 1.0;
/// If more wait, it shrinks.
const MANY_WAIT: f64 = 2.0;
/// After so long all is learnt anew: the way may have become longer.
const ANEW: Duration = Duration::from_secs(10);

/// The window of a lane.
#[derive(Debug)]
pub(super) struct Window {
    /// When the sections that are on their way were sent.
    sent: VecDeque<Instant>,
    size: f64,
    /// The time that a section takes if none is before it, in seconds.
    shortest: Option<f64>,
    /// No section has waited so far: the window doubles with each round trip.
    doubles: bool,
    /// When it began to learn.
    began: Option<Instant>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            sent: VecDeque::new(),
            size: LEAST,
            shortest: None,
            doubles: true,
            began: None,
        }
    }

    /// Whether another section may be sent.
    pub(super) fn has_room(&self) -> bool {
        (self.sent.len() as f64) < self.size
    }

    /// A section was sent at `now`.
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent.push_back(now);
    }

    /// At `now` the destination says that the oldest section is in memory. False if none is on its way.
    pub(super) fn placed(&mut self, now: Instant) -> bool {
        let Some(sent) = self.sent.pop_front() else {
            return false;
        };
        let took = now
            .saturating_duration_since(sent)
            .max(Duration::from_nanos(1));
        if now.saturating_duration_since(*self.began.get_or_insert(now)) > ANEW {
            (self.size, self.shortest, self.doubles) = (LEAST, None, true);
            self.began = Some(now);
        }
        self.learn(took.as_secs_f64());
        true
    }

    /// A section took so many seconds.
    fn learn(&mut self, took: f64) {
        let shortest = self.shortest.map_or(took, |known| known.min(took));
        self.shortest = Some(shortest);
        let waiting = self.size * (1.0 - shortest / took);
        let size = match waiting {
            _ if waiting < FEW_WAIT && self.doubles => self.size + 1.0,
            _ if waiting < FEW_WAIT => self.size + 1.0 / self.size,
            // The window has doubled once more before the first that waited came back.
            _ if self.doubles => self.size / 2.0,
            _ if waiting > MANY_WAIT => self.size - 1.0 / self.size,
            _ => self.size,
        };
        self.doubles &= waiting < FEW_WAIT;
        self.size = size.clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is on its way after `sections` over a link on which a section takes `alone` if none is before it, and `each` more for each
    /// one that is.
    fn after(sections: usize, alone: Duration, each: Duration) -> usize {
        let mut window = Window::new();
        let (mut now, mut free) = (Instant::now(), Instant::now());
        let mut arrivals = VecDeque::new();
        for _ in 0..sections {
            while window.has_room() {
                window.sent(now);
                free = free.max(now) + each;
                arrivals.push_back(free.max(now + alone));
            }
            now = arrivals.pop_front().unwrap();
            assert!(window.placed(now));
        }
        window.sent.len()
    }

    #[test]
    fn a_long_link_is_filled_and_a_short_one_has_few_sections_on_their_way() {
        let (each, alone) = (Duration::from_micros(100), Duration::from_millis(20));
        // 200 sections are under way on the long link when it is busy.
        let long = after(5000, alone, each);
        assert!((190..230).contains(&long), "{long}");
        let short = after(5000, each, each);
        assert!((2..5).contains(&short), "{short}");
    }

    #[test]
    fn a_link_that_has_become_longer_is_learnt_anew() {
        let mut window = Window::new();
        let mut now = Instant::now();
        let mut place = |took: f64| {
            window.sent(now);
            now += Duration::from_secs_f64(took);
            assert!(window.placed(now));
            window.size
        };
        place(0.001);
        let small = (0..100).map(|_| place(0.1)).last().unwrap();
        assert_eq!(small, LEAST);
        let large = (0..100).map(|_| place(0.1)).last().unwrap();
        assert!(large > 50.0, "{large}");
    }

    #[test]
    fn an_answer_to_nothing_is_noticed() {
        let mut window = Window::new();
        window.sent(Instant::now());
        assert!(window.placed(Instant::now()));
        assert!(!window.placed(Instant::now()));
    }
}
