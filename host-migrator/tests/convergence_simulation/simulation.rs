// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A migration in simulated time. The same scenario and rule have the same outcome, always.

use std::collections::VecDeque;

use crate::scenario::{Guest, PAGES, Scenario};

/// A step of the simulation, in seconds.
const STEP: f64 = 0.01;
/// A migration that lasts so long, in seconds, does not end.
pub const FOR_EVER: f64 = 240.0;
/// The speed of the link is measured over so many steps.
const MEASURED: usize = 100;

/// What a rule sees at a harvest. Times are seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub now: f64,
    pub pending: u64,
    /// Since the last harvest.
    pub dirty: u64,
    pub sent: u64,
    pub period: f64,
    /// The downtime if the guest is stopped now, as the link was lately.
    pub downtime: f64,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    GoOn,
    Throttle(u8),
    Stop,
}

/// A rule of convergence.
pub trait Rule {
    fn at_harvest(&mut self, seen: &Seen) -> Act;

    /// Whether a harvest is due before the round ends, so many seconds after the last.
    fn harvests_after(&self) -> Option<f64>;
}

/// How a migration ended.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub ended: bool,
    /// The whole time.
    pub seconds: f64,
    pub downtime: f64,
    /// The guest's time that it did not get before it was stopped.
    pub lost: f64,
    pub most_throttle: u8,
}

/// Migrates the guest of `scenario` by `rule`.
pub fn migrate(scenario: &Scenario, rule: &mut dyn Rule) -> Outcome {
    let mut guest = Guest::new(scenario);
    let mut pending = vec![true; PAGES];
    let mut written = vec![false; PAGES];
    // Hints take pages out before they are sent.
    pending[PAGES - scenario.hinted..].fill(false);
    let (mut throttle, mut most_throttle, mut lost) = (0u8, 0u8, 0.0);
    let (mut cursor, mut round, mut credit) = (0, 1, 0.0);
    let (mut sent, mut harvested_at) = (0, 0.0);
    let mut link = VecDeque::with_capacity(MEASURED);
    let mut now = 0.0;
    while now < FOR_EVER {
        let rate = scenario.link.rate(now);
        if link.len() == MEASURED {
            link.pop_front();
        }
        link.push_back(rate);
        now += STEP;
        let share = 1.0 - f64::from(throttle) / 100.0;
        lost += STEP * (1.0 - share);
        guest.run(STEP * share, |page| written[page] = true);
        credit += rate * STEP;
        let mut round_ended = false;
        while credit >= 1.0 {
            match pending[cursor..].iter().position(|it| *it) {
                Some(ahead) => {
                    cursor += ahead;
                    pending[cursor] = false;
                    (sent, credit) = (sent + 1, credit - 1.0);
                }
                None => {
                    (cursor, credit, round_ended) = (0, 0.0, true);
                }
            }
        }
        let since = now - harvested_at;
        let due = rule
            .harvests_after()
            .is_some_and(|after| since >= after && round > 1);
        if !round_ended && !due {
            continue;
        }
        let mut dirty = 0;
        for (page, was_written) in written.iter_mut().enumerate() {
            if std::mem::take(was_written) && !std::mem::replace(&mut pending[page], true) {
                dirty += 1;
            }
        }
        let left = pending.iter().filter(|it| **it).count() as u64;
        let measured = link.iter().sum::<f64>() / link.len() as f64;
        let act = rule.at_harvest(&Seen {
            now,
            pending: left,
            dirty,
            sent,
            period: since,
            downtime: left as f64 / measured,
        });
        (sent, harvested_at) = (0, now);
        round += u32::from(round_ended);
        match act {
            Act::GoOn => {}
            Act::Throttle(percent) => {
                throttle = percent;
                most_throttle = most_throttle.max(percent);
            }
            Act::Stop => {
                let downtime = left as f64 / scenario.link.rate(now);
                return Outcome {
                    ended: true,
                    seconds: now + downtime,
                    downtime,
                    lost,
                    most_throttle,
                };
            }
        }
    }
    Outcome {
        ended: false,
        seconds: now,
        downtime: 0.0,
        lost,
        most_throttle,
    }
}
