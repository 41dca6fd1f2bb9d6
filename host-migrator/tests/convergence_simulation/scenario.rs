// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests and links of the simulation: how a guest dirties its memory, and what its link takes.

use spec::stamp::Random;

/// Pages of each guest.
pub const PAGES: usize = 4096;

/// How a guest dirties its memory at full speed. Rates are pages a second.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// Any page, all the time.
    Steady { rate: f64 },
    /// Any page, for a while in each period.
    Bursts { rate: f64, period: f64, on: f64 },
    /// A few pages most of the time, and now and then any page.
    HotSet { pages: usize, rate: f64 },
    /// One page after the other.
    Sweep { rate: f64 },
    /// Little, and once in a period all of a heap.
    Collector { rate: f64, period: f64, heap: usize },
    /// At one rate, and from a moment on at another.
    Phases { first: f64, then: f64, at: f64 },
}

/// What the link takes. Rates are pages a second.
#[derive(Clone, Copy, Debug)]
pub enum Link {
    Steady(f64),
    /// Half as much from a moment on.
    Halves {
        rate: f64,
        at: f64,
    },
    /// Nearly nothing for a moment.
    Drops {
        rate: f64,
        at: f64,
        seconds: f64,
    },
}

impl Link {
    pub fn rate(&self, now: f64) -> f64 {
        match *self {
            Self::Steady(rate) => rate,
            Self::Halves { rate, at } if now >= at => rate / 2.0,
            Self::Drops { rate, at, seconds } if (at..at + seconds).contains(&now) => rate / 50.0,
            Self::Halves { rate, .. } | Self::Drops { rate, .. } => rate,
        }
    }
}

/// A guest and its link.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub pattern: Pattern,
    pub link: Link,
    /// Pages that the guest hints in the first round.
    pub hinted: usize,
    pub seed: u64,
}

impl Scenario {
    /// Scenario `seed` of a list without an end, each with another pattern, load, link and amount of hints.
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let mut between =
            |least: f64, most: f64| least + (most - least) * (random.below(1000) as f64 / 1000.0);
        let rate = between(200.0, 2000.0);
        // From a twentieth of what the link takes to four times as much.
        let load = rate * 0.05 * 80f64.powf(between(0.0, 1.0));
        let pages = |share: f64| (PAGES as f64 * share) as usize;
        let pattern = match seed % 6 {
            0 => Pattern::Steady { rate: load },
            1 => {
                let period = between(2.0, 20.0);
                let on = period * between(0.1, 0.7);
                Pattern::Bursts {
                    rate: load,
                    period,
                    on,
                }
            }
            2 => Pattern::HotSet {
                pages: pages(between(0.01, 0.3)),
                rate: load,
            },
            3 => Pattern::Sweep { rate: load },
            4 => Pattern::Collector {
                rate: load / 4.0,
                period: between(5.0, 30.0),
                heap: pages(between(0.1, 0.5)),
            },
            _ => Pattern::Phases {
                first: load,
                then: load * between(0.1, 3.0),
                at: between(2.0, 40.0),
            },
        };
        let link = match seed / 6 % 3 {
            0 => Link::Steady(rate),
            1 => Link::Halves {
                rate,
                at: between(1.0, 30.0),
            },
            _ => Link::Drops {
                rate,
                at: between(1.0, 20.0),
                seconds: between(0.2, 3.0),
            },
        };
        let hinted = match seed / 18 % 2 {
            0 => 0,
            _ => pages(between(0.1, 0.6)),
        };
        Self {
            pattern,
            link,
            hinted,
            seed,
        }
    }
}

/// A guest that runs.
pub struct Guest {
    pattern: Pattern,
    random: Random,
    /// Its own time: it stands still while the guest is held.
    lived: f64,
    owed: f64,
    next: usize,
}

impl Guest {
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            pattern: scenario.pattern,
            random: Random::new(scenario.seed),
            lived: 0.0,
            owed: 0.0,
            next: 0,
        }
    }

    /// Runs for `seconds` of its own time.
    pub fn run(&mut self, seconds: f64, mut write: impl FnMut(usize)) {
        let rate = match self.pattern {
            Pattern::Steady { rate } | Pattern::Sweep { rate } | Pattern::HotSet { rate, .. } => {
                rate
            }
            Pattern::Bursts { rate, period, on } if self.lived % period < on => rate,
            Pattern::Bursts { .. } => 0.0,
            Pattern::Collector { rate, period, heap } => {
                let collects = self.lived % period < 1.0;
                rate + if collects { heap as f64 } else { 0.0 }
            }
            Pattern::Phases { first, at, .. } if self.lived < at => first,
            Pattern::Phases { then, .. } => then,
        };
        self.lived += seconds;
        self.owed += rate * seconds;
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            write(self.page());
        }
    }

    fn page(&mut self) -> usize {
        let any = self.random.below(PAGES as u64) as usize;
        match self.pattern {
            Pattern::HotSet { pages, .. } if self.random.below(20) > 0 => any % pages.max(1),
            Pattern::Sweep { .. } => {
                self.next = (self.next + 1) % PAGES;
                self.next
            }
            Pattern::Collector { period, heap, .. } if self.lived % period < 1.0 => {
                self.next = (self.next + 1) % heap.max(1);
                self.next
            }
            _ => any,
        }
    }
}
