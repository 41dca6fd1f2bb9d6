// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first round of a migration in simulated time: a link, a guest that hints, and the engine's own walk.
//!
//! The bench prints it, and a test holds the bounds of `spec/sending-order.md` against it. [`Walk::step`] says what is sent
//! next and when it waits; the time that this takes is the link's. Hints come in blocks of 4 MiB, in random order.

mod guest;

use std::time::Duration;

use host_migrator::Trace;
use host_migrator::rule::{Tellers, Tracker};
use host_migrator::walk::hold_back::{HoldBack, Outlook};
use host_migrator::walk::{Moment, Step, Walk, Work};
use spec::hint_map::HintPhase;
use spec::stamp::Random;
use spec::{PAGE_SIZE, PageRange};

use guest::{Clock, Hints, Memory};

/// Bytes of the guest's memory.
pub const GUEST: u64 = 4 << 30;
const WORD_PAGES: u64 = 64;
const WORD: u64 = WORD_PAGES * PAGE_SIZE;
const WORDS: usize = (GUEST / WORD) as usize;
/// Words of a hint.
const BLOCK: usize = 16;
/// How often the sender looks while it waits.
const TICK: f64 = 0.001;

/// How the guest's hints arrive; the speed is the scenario's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// At once and steadily.
    Steady,
    /// 20 ms at twice the speed, then 20 ms not at all.
    Bursts,
    /// Not for 5 seconds, then steadily.
    Late,
    /// Never.
    Silent,
    /// Hints that are of no use, without end.
    Flood,
    /// The first half at full speed, the rest at a twentieth.
    FastThenSlow,
    /// For a second at a twentieth of the speed, then at full speed.
    SlowThenFast,
}

/// All of them.
pub const ARRIVALS: [Arrival; 7] = [
    Arrival::Steady,
    Arrival::Bursts,
    Arrival::Late,
    Arrival::Silent,
    Arrival::Flood,
    Arrival::FastThenSlow,
    Arrival::SlowThenFast,
];
/// Bytes of memory a second that hints cover.
pub const HINT_SPEEDS: [f64; 5] = [10e6, 300e6, 1e9, 4e9, 30e9];
/// Bytes a second: 1, 10, 25 and 100 Gbit/s.
pub const LINKS: [f64; 4] = [0.12e9, 1.2e9, 3e9, 12e9];
/// Parts of the memory that are free.
pub const FREE_SHARES: [f64; 3] = [0.1, 0.5, 0.9];

/// A guest and a link.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// How hints arrive.
    pub arrival: Arrival,
    /// How fast.
    pub hint_speed: f64,
    /// Bytes a second that the link takes.
    pub link: f64,
    /// The part of the memory that is free.
    pub free: f64,
}

/// Every combination. Where no useful hint comes the speed is of no matter: one is enough.
pub fn grid() -> impl Iterator<Item = Scenario> {
    let mut all = Vec::new();
    for arrival in ARRIVALS {
        for hint_speed in HINT_SPEEDS {
            if arrival == Arrival::Silent && hint_speed != HINT_SPEEDS[0] {
                continue;
            }
            for link in LINKS {
                for free in FREE_SHARES {
                    all.push(Scenario {
                        arrival,
                        hint_speed,
                        link,
                        free,
                    });
                }
            }
        }
    }
    all.into_iter()
}

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// [`Walk`].
    Real,
    /// Send at once, whatever happens.
    NeverWait,
    /// Send nothing before the guest is finished.
    WaitForAll,
}

/// What a round took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Seconds; infinite for who waits for a guest that never ends.
    pub seconds: f64,
    /// Bytes on the link.
    pub bytes: f64,
}

impl Scenario {
    /// What the best would take that knows all hints before they come.
    pub fn best(self) -> Cost {
        self.sending(self.free_words().iter().filter(|free| !**free).count())
    }

    /// What it takes to send everything, without hints.
    pub fn hints_off(self) -> Cost {
        self.sending(WORDS)
    }

    /// What may be waited for nothing.
    pub fn advance(self) -> f64 {
        HoldBack::new(self.outlook()).advance().as_secs_f64()
    }

    /// Simulates the round.
    pub fn run(self, policy: Policy) -> Cost {
        let hinted_at = self.hint_times();
        let finite = hinted_at.iter().filter(|at| at.is_finite());
        let last = finite.copied().fold(None, |last: Option<f64>, at| {
            Some(last.map_or(at, |last| last.max(at)))
        });
        let last = last.unwrap_or(f64::INFINITY);
        let begin = match policy {
            Policy::WaitForAll => last,
            _ => 0.0,
        };
        if !begin.is_finite() {
            return Cost {
                seconds: f64::INFINITY,
                bytes: 0.0,
            };
        }
        let clock = Clock::at(begin);
        let phase = move |now| match policy {
            // The walk never waits for a guest that has finished.
            Policy::NeverWait => HintPhase::Finished,
            _ => self.phase(now, last),
        };
        let useless = move |now| self.useless_pages(now);
        let mut hints = Hints::new(&clock, hinted_at, Box::new(phase), Box::new(useless));
        let sent = self.walk(&clock, &mut hints);
        Cost {
            seconds: clock.now(),
            bytes: sent as f64 * PAGE_SIZE as f64,
        }
    }

    /// The engine's walk over the guest's memory. Sending moves `clock` on. Returns how many pages were sent.
    fn walk(self, clock: &Clock, hints: &mut Hints) -> u64 {
        let memory = Memory::of(GUEST / PAGE_SIZE);
        let trace = Trace::default();
        let regions = [PageRange::new(0, GUEST / PAGE_SIZE).expect("memory")];
        let mut tracker = Tracker::arm(&regions, &mut [], Some(hints), Tellers::ALL, &trace)
            .expect("there is no log that could fail");
        let epoch = tracker.open();
        let pass = epoch.pass();
        let mut walk = Walk::new(&memory, false);
        walk.begin_round(1, GUEST / PAGE_SIZE);
        walk.begin(self.outlook(), WORD);
        let opened = clock.now();
        let send = |work: Work<'_>| match work {
            Work::Pages(copies) => clock.advance(copies.content().len() as f64 / self.link),
            Work::Zero(_) | Work::Discard(_) => unreachable!("nothing is at the destination yet"),
        };
        loop {
            let moment = Moment {
                now: Duration::from_secs_f64(clock.now() - opened),
                pages_per_second: self.link / PAGE_SIZE as f64,
                section_bytes: WORD,
                words: 1,
            };
            match walk.step(&pass, moment).expect("memory") {
                Step::Send(work) => send(work),
                Step::Wait => clock.advance(TICK),
                Step::Look => {}
                Step::End => break,
            }
        }
        while let Some(work) = walk.flush(&pass).expect("memory") {
            send(work);
        }
        walk.round().pages_sent
    }

    fn sending(self, words: usize) -> Cost {
        let bytes = words as f64 * WORD as f64;
        Cost {
            seconds: bytes / self.link,
            bytes,
        }
    }

    fn outlook(self) -> Outlook {
        Outlook {
            pending: GUEST / PAGE_SIZE,
            pages_per_second: self.link / PAGE_SIZE as f64,
            words: WORDS as u64,
            free: None,
            silent: false,
        }
    }

    /// Which words are free: the same for every speed and arrival.
    fn free_words(self) -> Vec<bool> {
        let mut random = Random::new(1);
        let share = (self.free * 1000.0) as u64;
        (0..WORDS / BLOCK)
            .map(|_| random.below(1000) < share)
            .flat_map(|free| [free; BLOCK])
            .collect()
    }

    /// When each word is hinted; never, if that is infinite.
    fn hint_times(self) -> Vec<f64> {
        let free = self.free_words();
        let mut blocks: Vec<usize> = (0..WORDS / BLOCK).filter(|b| free[b * BLOCK]).collect();
        let mut random = Random::new(2);
        for last in (1..blocks.len()).rev() {
            blocks.swap(last, random.below(last as u64 + 1) as usize);
        }
        let mut times = vec![f64::INFINITY; WORDS];
        let count = blocks.len();
        for (number, block) in blocks.into_iter().enumerate() {
            let at = self.arrival_of(number + 1, count);
            times[block * BLOCK..(block + 1) * BLOCK].fill(at);
        }
        times
    }

    /// When the hint with `number` of `count` arrives.
    fn arrival_of(self, number: usize, count: usize) -> f64 {
        let bytes = |blocks: usize| (blocks * BLOCK) as f64 * WORD as f64;
        let steady = TICK + bytes(number) / self.hint_speed;
        match self.arrival {
            Arrival::Steady => steady,
            Arrival::Bursts => {
                let busy = bytes(number) / (2.0 * self.hint_speed);
                TICK + busy + (busy / 0.02).floor() * 0.02
            }
            Arrival::Late => 5.0 + steady,
            Arrival::Silent | Arrival::Flood => f64::INFINITY,
            Arrival::FastThenSlow => {
                let slow = number.saturating_sub(count / 2);
                steady + 19.0 * bytes(slow) / self.hint_speed
            }
            Arrival::SlowThenFast => {
                let slow = 20.0 * bytes(number) / self.hint_speed;
                if slow <= 1.0 {
                    TICK + slow
                } else {
                    TICK + 1.0 + (bytes(number) - self.hint_speed / 20.0) / self.hint_speed
                }
            }
        }
    }

    fn phase(self, now: f64, last: f64) -> HintPhase {
        let first = match self.arrival {
            Arrival::Late => 5.0 + TICK,
            Arrival::Silent => f64::INFINITY,
            _ => TICK,
        };
        if now < first {
            HintPhase::Requested
        } else if now < last {
            HintPhase::Running
        } else {
            HintPhase::Finished
        }
    }

    /// A flood names each page of the guest once: the device counts none twice.
    fn useless_pages(self, now: f64) -> u64 {
        if self.arrival == Arrival::Flood {
            (now * self.hint_speed / PAGE_SIZE as f64).min((GUEST / PAGE_SIZE) as f64) as u64
        } else {
            0
        }
    }
}
