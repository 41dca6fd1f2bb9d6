// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chooses how the migration of a busy guest goes on, from what its operator wants alone: [`Goals`].
//!
//! `spec/convergence.md` says why, and what it guarantees.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::downtime::Downtime;
use super::throttle::{MOST_PERCENT, SHORTEST_SAMPLE};

/// Below this ratio of dirtied to sent pages the rounds become shorter fast enough.
const CONVERGES: f64 = 0.9;
/// The ratio that a throttle aims at: each round is a fifth of the one before. In the simulation a guest lost more of its time with a
/// higher one, because it was throttled for longer.
const AIM: f64 = 0.2;
/// A throttle rises by at least so much, in percent.
const LEAST_STEP: f64 = 5.0;
/// So many samples in a row that do not converge are a stall.
const STALLED_SAMPLES: u32 = 2;
/// So many samples are remembered.
const WINDOW: usize = 8;
/// The ratio is that of so many samples together: what is dirtied in one is sent in another.
const RATIO_WINDOW: usize = 3;
/// A longer downtime that is allowed has this much room above the shortest one that was seen.
const ROOM: f64 = 1.05;
/// The most decisions that are kept in words.
const MOST_DECISIONS: usize = 64;

/// What the operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goals {
    /// The downtime that is wanted.
    pub downtime_limit: Duration,
    /// The longest downtime that is allowed if the migration would not end otherwise. [`Goals::downtime_limit`] or less: no
    /// longer one is.
    pub most_downtime: Duration,
    /// When the migration should have ended, since its start; none: there is time.
    pub deadline: Option<Duration>,
    /// The most of its processors' time that the guest may lose, in percent, up to 99; 0: it is not throttled.
    pub max_guest_slowdown: u8,
}

/// What is known at a harvest.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The time since the migration began.
    pub now: Duration,
    /// Pages that are to be sent now.
    pub pending: u64,
    /// Pages that were dirtied since the last view and are to be sent again.
    pub dirty: u64,
    /// Pages that the link took since the last view.
    pub sent: u64,
    /// The time since the last view.
    pub period: Duration,
    /// How long the guest would be stopped now; none: that is not known yet.
    pub downtime: Option<Downtime>,
}

/// How the migration goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// As before.
    GoOn,
    /// The guest is throttled by so many percent from now on.
    Throttle(u8),
    /// A longer downtime is allowed from now on.
    Allow(Duration),
    /// The guest is handed over before its memory.
    HandOver,
    /// The guest is stopped.
    SwitchOver,
}

/// The controller of one migration.
#[derive(Clone, Debug)]
pub struct Controller {
    goals: Goals,
    may_hand_over: bool,
    /// The downtime that is allowed now.
    allowed: Duration,
    throttle: u8,
    since: Sample,
    samples: VecDeque<Sample>,
    /// How many of these came since the guest was throttled further.
    as_now: usize,
    stalled: u32,
    decisions: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    dirty: u64,
    sent: u64,
    period: Duration,
    /// The shortest downtime that was expected.
    least: Option<Duration>,
}

impl Sample {
    fn rate(&self) -> f64 {
        self.sent as f64 / self.period.as_secs_f64().max(1e-9)
    }
}

impl Controller {
    /// A controller at the beginning of a migration.
    pub fn new(goals: Goals) -> Self {
        Self {
            goals,
            may_hand_over: false,
            allowed: goals.downtime_limit,
            throttle: 0,
            since: Sample::default(),
            samples: VecDeque::new(),
            as_now: 0,
            stalled: 0,
            decisions: Vec::new(),
        }
    }

    /// The guest may be handed over before its memory, if nothing else that is allowed helps.
    #[must_use]
    pub fn with_postcopy(self) -> Self {
        Self {
            may_hand_over: true,
            ..self
        }
    }

    /// What the operator wants is something else from now on.
    pub fn change(&mut self, goals: Goals) {
        self.goals = goals;
        let most = goals.most_downtime.max(goals.downtime_limit);
        self.allowed = self.allowed.clamp(goals.downtime_limit, most);
        self.throttle = self.throttle.min(self.most_throttle());
    }

    /// How far the guest is throttled, in percent.
    pub fn throttle(&self) -> u8 {
        self.throttle
    }

    /// The downtime that is allowed now.
    pub fn allowed(&self) -> Duration {
        self.allowed
    }

    /// The decisions so far, in words, the first and the last of them if there were many.
    pub fn decisions(&self) -> &[String] {
        &self.decisions
    }

    /// Decides after a harvest.
    pub fn decide(&mut self, view: View) -> Decision {
        if let Some(downtime) = view.downtime
            && downtime.fits(self.allowed)
        {
            let (sum, allowed) = (downtime.sum(), self.allowed);
            let pages = view.pending;
            self.say(
                view.now,
                &format_args!(
                    "stops the guest: {pages} pages are left, for a downtime of {sum:.0?} of {allowed:.0?}"
                ),
            );
            return Decision::SwitchOver;
        }
        self.since.dirty += view.dirty;
        self.since.sent += view.sent;
        self.since.period += view.period;
        let downtime = view.downtime.map(Downtime::sum);
        self.since.least = [self.since.least, downtime].into_iter().flatten().min();
        if self.since.period < SHORTEST_SAMPLE {
            return Decision::GoOn;
        }
        let sample = std::mem::take(&mut self.since);
        self.remember(sample);
        let (ratio, rate) = (self.ratio(), self.link_rate());
        let left = self.goals.deadline.map(|end| end.saturating_sub(view.now));
        let in_time = |left| time_needed(view.pending, ratio, rate).is_some_and(|it| it <= left);
        if ratio < CONVERGES && left.is_none_or(in_time) {
            self.stalled = 0;
            return Decision::GoOn;
        }
        self.stalled += 1;
        let late = left.is_some_and(|left| left.is_zero());
        if self.stalled < STALLED_SAMPLES && !late {
            return Decision::GoOn;
        }
        self.stalled = 0;
        self.act(view, ratio, late)
    }

    /// Does the least that helps, of what is allowed.
    fn act(&mut self, view: View, ratio: f64, late: bool) -> Decision {
        let most = self.most_throttle();
        if self.throttle < most {
            let share = f64::from(100 - self.throttle);
            // The guest dirties less in proportion to its time.
            let aimed = 100.0 - share * (AIM / ratio.max(AIM));
            let least = f64::from(self.throttle) + LEAST_STEP;
            let percent = aimed.max(least).min(f64::from(most)) as u8;
            self.throttle = percent;
            self.as_now = 0;
            self.say(view.now, &format_args!(
                "throttles the guest by {percent} %: it dirties {ratio:.2} pages for each that is sent"
            ));
            return Decision::Throttle(percent);
        }
        if self.allowed < self.goals.most_downtime {
            let shortest = self.samples.iter().filter_map(|it| it.least).min();
            let needed = shortest.map(|least| least.mul_f64(ROOM));
            let most = self.goals.most_downtime;
            let next = match needed {
                Some(needed) if !late => needed.max(self.allowed).min(most),
                _ => most,
            };
            if next > self.allowed {
                self.allowed = next;
                self.say(
                    view.now,
                    &format_args!(
                        "allows a downtime of {next:.0?}: the shortest lately was {:.0?}",
                        shortest.unwrap_or_default()
                    ),
                );
                return Decision::Allow(next);
            }
        }
        if !self.may_hand_over {
            return Decision::GoOn;
        }
        self.say(
            view.now,
            &format_args!(
                "hands the guest over before its memory: it dirties {ratio:.2} pages for each that is sent, and nothing else that is \
                 allowed helps"
            ),
        );
        Decision::HandOver
    }

    fn most_throttle(&self) -> u8 {
        self.goals.max_guest_slowdown.min(MOST_PERCENT)
    }

    fn remember(&mut self, sample: Sample) {
        if self.samples.len() == WINDOW {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.as_now += 1;
    }

    /// Pages that the link takes in a second: the median of the last samples, so that a moment's drop of the link is no reason for
    /// anything.
    fn link_rate(&self) -> f64 {
        let mut rates: Vec<f64> = self.samples.iter().map(Sample::rate).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    }

    /// Pages dirtied for each that the link takes.
    fn ratio(&self) -> f64 {
        let rate = self.link_rate();
        let samples = self.samples.iter().rev();
        let (dirty, could) = samples
            .take(RATIO_WINDOW.min(self.as_now))
            .map(|sample| {
                let could = rate * sample.period.as_secs_f64();
                (sample.dirty as f64, could.max(sample.sent as f64))
            })
            .fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        dirty / f64::max(could, 1.0)
    }

    fn say(&mut self, now: Duration, what: &dyn fmt::Display) {
        if self.decisions.len() == MOST_DECISIONS {
            self.decisions.remove(MOST_DECISIONS / 2);
        }
        let text = format!("after {:.1} s: {what}", now.as_secs_f64());
        log::info!("{text}");
        self.decisions.push(text);
    }
}

/// How long it takes until next to nothing of `pending` pages is left, if the link takes `rate` pages a second and each round is
/// `ratio` times as long as the one before. None: the link takes nothing.
fn time_needed(pending: u64, ratio: f64, rate: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(pending as f64 / rate / (1.0 - ratio)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const GOALS: Goals = Goals {
        downtime_limit: Duration::from_millis(300),
        most_downtime: Duration::from_millis(300),
        deadline: None,
        max_guest_slowdown: 95,
    };

    /// A view at `second`, one second after the last, of a link that takes 1000 pages a second.
    fn view(second: u32, dirty: u64, pending: u64) -> View {
        View {
            now: SECOND * second,
            pending,
            dirty,
            sent: 1000,
            period: SECOND,
            downtime: Some(Downtime {
                memory: SECOND * pending as u32 / 1000,
                rest: Duration::ZERO,
            }),
        }
    }

    /// What is decided at each of `views`.
    fn decisions(goals: Goals, views: &[(u64, u64)]) -> Vec<Decision> {
        let mut controller = Controller::new(goals);
        (1..)
            .zip(views)
            .map(|(second, &(dirty, pending))| controller.decide(view(second, dirty, pending)))
            .collect()
    }

    #[test]
    fn a_guest_whose_rounds_become_shorter_is_left_alone() {
        let views: Vec<_> = (0..20).map(|_| (500, 2000)).collect();
        assert_eq!(decisions(GOALS, &views), [Decision::GoOn; 20]);
    }

    #[test]
    fn a_guest_that_dirties_as_much_as_is_sent_is_throttled_as_far_as_needed_at_once() {
        let seen = decisions(GOALS, &[(1000, 5000); 2]);
        assert_eq!(seen, [Decision::GoOn, Decision::Throttle(80)]);
        let seen = decisions(GOALS, &[(2000, 5000); 2]);
        assert_eq!(seen[1], Decision::Throttle(90));
        let most = decisions(GOALS, &[(20_000, 5000); 2]);
        assert_eq!(most[1], Decision::Throttle(95));
    }

    #[test]
    fn one_bad_sample_is_no_stall() {
        let views = [(100, 5000), (1500, 5000), (100, 5000)];
        let views: Vec<_> = views.into_iter().cycle().take(20).collect();
        assert_eq!(decisions(GOALS, &views), [Decision::GoOn; 20]);
    }

    #[test]
    fn the_guest_is_stopped_as_soon_as_the_downtime_is_what_was_wanted() {
        assert_eq!(decisions(GOALS, &[(900, 300)]), [Decision::SwitchOver]);
        assert_eq!(decisions(GOALS, &[(0, 301)]), [Decision::GoOn]);
    }

    #[test]
    fn nothing_is_done_that_is_not_allowed() {
        let goals = Goals {
            max_guest_slowdown: 0,
            ..GOALS
        };
        assert_eq!(decisions(goals, &[(2000, 5000); 30]), [Decision::GoOn; 30]);
        let mut controller = Controller::new(GOALS);
        for second in 1..50 {
            controller.decide(view(second, 20_000, 5000));
            assert!(controller.throttle() <= 95 && controller.allowed() <= GOALS.downtime_limit);
        }
    }

    #[test]
    fn a_longer_downtime_is_allowed_for_the_local_minimum_of_what_is_left() {
        let goals = Goals {
            max_guest_slowdown: 0,
            most_downtime: 2 * SECOND,
            ..GOALS
        };
        let mut controller = Controller::new(goals);
        let pendings = [3000, 1000, 3000, 2500];
        for (second, pending) in (1..).zip(pendings) {
            controller.decide(view(second, 1500, pending));
        }
        assert_eq!(controller.allowed(), Duration::from_millis(1050));
        assert_eq!(controller.decide(view(5, 1500, 1050)), Decision::SwitchOver);
    }

    #[test]
    fn a_guest_that_nothing_else_helps_is_handed_over_before_its_memory_if_that_is_allowed() {
        let goals = Goals {
            max_guest_slowdown: 50,
            ..GOALS
        };
        let mut controller = Controller::new(goals).with_postcopy();
        let seen = [1, 2, 3, 4].map(|second| controller.decide(view(second, 20_000, 5000)));
        assert_eq!(seen[1], Decision::Throttle(50));
        assert_eq!(seen[3], Decision::HandOver);
        let mut controller = Controller::new(goals).with_postcopy();
        let converges = (1..30).map(|second| controller.decide(view(second, 500, 2000)));
        assert!(converges.into_iter().all(|it| it == Decision::GoOn));
    }

    #[test]
    fn after_the_deadline_all_that_is_allowed_is_used_without_delay() {
        let goals = Goals {
            max_guest_slowdown: 0,
            most_downtime: 20 * SECOND,
            deadline: Some(SECOND),
            ..GOALS
        };
        let seen = decisions(goals, &[(2000, 5000), (2000, 15_000)]);
        assert_eq!(seen, [Decision::Allow(20 * SECOND), Decision::SwitchOver]);
    }

    #[test]
    fn a_moments_drop_of_the_link_is_no_reason_to_throttle() {
        let mut controller = Controller::new(GOALS);
        for second in 1..6 {
            assert_eq!(controller.decide(view(second, 400, 5000)), Decision::GoOn);
        }
        for second in 6..8 {
            let dropped = View {
                sent: 10,
                ..view(second, 400, 5000)
            };
            assert_eq!(controller.decide(dropped), Decision::GoOn);
        }
    }

    #[test]
    fn other_goals_take_effect_at_once() {
        let mut controller = Controller::new(GOALS);
        for second in 1..3 {
            controller.decide(view(second, 20_000, 5000));
        }
        assert_eq!(controller.throttle(), 95);
        controller.change(Goals {
            max_guest_slowdown: 30,
            downtime_limit: 6 * SECOND,
            ..GOALS
        });
        assert_eq!(controller.throttle(), 30);
        assert_eq!(
            controller.decide(view(3, 20_000, 5000)),
            Decision::SwitchOver
        );
    }

    #[test]
    fn decisions_are_told_in_words_and_bounded() {
        let mut controller = Controller::new(GOALS);
        for second in 1..1000 {
            controller.decide(view(second, 10, 300));
        }
        assert_eq!(controller.decisions().len(), MOST_DECISIONS);
        let first = &controller.decisions()[0];
        assert_eq!(
            first,
            "after 1.0 s: stops the guest: 300 pages are left, for a downtime of 300ms of 300ms"
        );
    }

    #[test]
    fn a_link_that_takes_nothing_and_a_guest_that_sleeps_are_no_trouble() {
        for (dirty, sent) in [(0, 0), (100, 0), (0, 100), (u64::MAX / 100, 0)] {
            let mut controller = Controller::new(GOALS);
            for second in 1..50 {
                let view = View {
                    sent,
                    downtime: None,
                    ..view(second, dirty, 5000)
                };
                controller.decide(view);
                assert!(controller.throttle() <= 95);
            }
            assert_eq!(controller.throttle() > 0, dirty > sent, "{dirty}, {sent}");
        }
    }
}
