// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far a guest that writes too fast is throttled (QEMU's auto-converge).
//!
//! Each harvest is a sample: how much the guest has dirtied since the last one, and how much was sent. There are two reasons to
//! throttle the guest further, and either is enough:
//!
//! - it has dirtied more than the threshold's share of what was sent, in two samples;
//! - with [`ThrottleParams::responsive`] also: that share was above the threshold and not lower than in the sample before, in two
//!   samples.

use std::time::Duration;

/// Samples of a shorter time are put together: a few pages say little.
pub const SHORTEST_SAMPLE: Duration = Duration::from_secs(1);
/// So many samples must agree.
const AGREEING_SAMPLES: u32 = 2;
/// The most that a guest can be throttled, in percent.
pub const MOST_PERCENT: u8 = 99;

/// How to throttle. The names and defaults are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleParams {
    /// The first step, in percent of each vCPU's time; 1 to 99.
    pub initial: u8,
    /// Each further step, in percent; 1 to 99.
    pub increment: u8,
    /// The most, in percent; [`ThrottleParams::initial`] to 99.
    pub max: u8,
    /// Make steps smaller that would take more than needed.
    pub tailslow: bool,
    /// Also throttle further when the share of dirtied bytes does not fall.
    pub responsive: bool,
    /// Dirtied bytes for each hundred that were sent, from which the guest writes too fast; 1 to 100.
    pub trigger_threshold: u8,
}

impl Default for ThrottleParams {
    fn default() -> Self {
        Self {
            initial: 20,
            increment: 10,
            max: MOST_PERCENT,
            tailslow: false,
            responsive: false,
            trigger_threshold: 50,
        }
    }
}

/// A parameter out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}, and must be {least} to {most}")]
#[non_exhaustive]
pub struct ThrottleParamError {
    /// The parameter.
    pub name: &'static str,
    /// Its value.
    pub value: u8,
    /// The least that it may be.
    pub least: u8,
    /// The most.
    pub most: u8,
}

impl ThrottleParams {
    /// These parameters, if each is within its range.
    ///
    /// # Errors
    /// [`ThrottleParamError`] names one that is not.
    pub fn checked(self) -> Result<Self, ThrottleParamError> {
        let Self {
            initial,
            increment,
            max,
            trigger_threshold,
            ..
        } = self;
        let ranges = [
            ("cpu-throttle-initial", initial, 1, MOST_PERCENT),
            ("cpu-throttle-increment", increment, 1, MOST_PERCENT),
            ("cpu-throttle-max", max, initial, MOST_PERCENT),
            ("throttle-trigger-threshold", trigger_threshold, 1, 100),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(ThrottleParamError {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(self)
    }
}

/// What happened between two harvests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Bytes that the guest has dirtied and that are to be sent again.
    pub dirty_bytes: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// The time.
    pub period: Duration,
}

impl Sample {
    /// Both as one.
    fn and(self, other: Self) -> Self {
        Self {
            dirty_bytes: self.dirty_bytes.saturating_add(other.dirty_bytes),
            sent_bytes: self.sent_bytes.saturating_add(other.sent_bytes),
            period: self.period.saturating_add(other.period),
        }
    }

    /// Whether the guest has dirtied more than `percent` of what was sent.
    fn is_above(self, percent: u8) -> bool {
        u128::from(self.dirty_bytes) * 100 > u128::from(self.sent_bytes) * u128::from(percent)
    }

    /// Whether the share of dirtied bytes is that of `other` or more. If nothing was sent, it is without limit.
    fn is_not_below(self, other: Self) -> bool {
        let [dirty, sent] = [self.dirty_bytes, self.sent_bytes].map(u128::from);
        let [other_dirty, other_sent] = [other.dirty_bytes, other.sent_bytes].map(u128::from);
        dirty * other_sent >= other_dirty * sent
    }
}

/// The throttle of one migration. A new migration begins with a new one, so nothing is left of a migration before.
#[derive(Clone, Debug)]
pub struct AutoConverge {
    /// None: the guest is not throttled.
    params: Option<ThrottleParams>,
    percent: u8,
    /// What was observed since the last whole sample.
    since: Sample,
    last: Option<Sample>,
    /// Samples above the threshold since the last step for that reason.
    above: u32,
    /// Samples above the threshold that were also not below the one before, since the last step for that reason.
    not_falling: u32,
}

impl AutoConverge {
    /// A guest at full speed, which will be throttled with these `params`; none: never.
    pub fn new(params: Option<ThrottleParams>) -> Self {
        Self {
            params,
            percent: 0,
            since: Sample::default(),
            last: None,
            above: 0,
            not_falling: 0,
        }
    }

    /// How far the guest is to be throttled now, in percent of its time; 0: not at all.
    pub fn percent(&self) -> u8 {
        self.percent
    }

    /// Whether a sample may throttle the guest further. If not, none is needed before its time.
    pub fn can_rise(&self) -> bool {
        (self.params).is_some_and(|params| self.percent < params.max)
    }

    /// The parameters are others from now on. Returns the new [`AutoConverge::percent`].
    pub fn change(&mut self, params: Option<ThrottleParams>) -> u8 {
        self.params = params;
        let most = params.map_or(0, |params| params.max);
        self.percent = self.percent.min(most);
        self.percent
    }

    /// Takes what happened since the last harvest into account. Returns the new [`AutoConverge::percent`].
    pub fn observe(&mut self, sample: Sample) -> u8 {
        self.since = self.since.and(sample);
        if self.since.period < SHORTEST_SAMPLE {
            return self.percent;
        }
        let sample = std::mem::take(&mut self.since);
        let before = self.last.replace(sample);
        let Some(params) = self.params else {
            return self.percent;
        };
        let above = sample.is_above(params.trigger_threshold);
        let rises = above && before.is_some_and(|before| sample.is_not_below(before));
        let too_fast = agrees(&mut self.above, above);
        let does_not_fall = agrees(&mut self.not_falling, rises) && params.responsive;
        if too_fast || does_not_fall {
            self.step(params, sample);
        }
        self.percent
    }

    fn step(&mut self, params: ThrottleParams, sample: Sample) {
        let next = match self.percent {
            0 => params.initial,
            percent if params.tailslow => {
                // The guest's share of its time with which it would dirty as much as the threshold allows.
                let now = f64::from(MOST_PERCENT + 1 - percent);
                let allowed =
                    sample.sent_bytes as f64 * f64::from(params.trigger_threshold) / 100.0;
                let ideal = now * allowed / (sample.dirty_bytes.max(1) as f64);
                let needed = (now - ideal).clamp(1.0, f64::from(MOST_PERCENT)) as u8;
                percent + needed.min(params.increment)
            }
            percent => percent.saturating_add(params.increment),
        };
        self.percent = next.min(params.max);
    }
}

/// Counts a sample that `agrees`. True when there were enough, and the count begins again.
fn agrees(count: &mut u32, agrees: bool) -> bool {
    *count += u32::from(agrees);
    let enough = *count >= AGREEING_SAMPLES;
    if enough {
        *count = 0;
    }
    enough
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: ThrottleParams = ThrottleParams {
        initial: 20,
        increment: 10,
        max: 99,
        tailslow: false,
        responsive: false,
        trigger_threshold: 50,
    };
    const RESPONSIVE: ThrottleParams = ThrottleParams {
        responsive: true,
        ..PARAMS
    };

    fn sample(dirty_bytes: u64, sent_bytes: u64) -> Sample {
        Sample {
            dirty_bytes,
            sent_bytes,
            period: SHORTEST_SAMPLE,
        }
    }

    /// The percent after each sample.
    fn steps(params: ThrottleParams, samples: &[(u64, u64)]) -> Vec<u8> {
        let mut policy = AutoConverge::new(Some(params));
        (samples.iter())
            .map(|&(dirty, sent)| policy.observe(sample(dirty, sent)))
            .collect()
    }

    #[test]
    fn a_guest_that_dirties_too_much_twice_is_throttled_a_step() {
        let steps = steps(PARAMS, &[(60, 100); 6]);
        assert_eq!(steps, [0, 20, 20, 30, 30, 40]);
    }

    #[test]
    fn a_guest_at_the_threshold_is_not_throttled() {
        assert_eq!(steps(RESPONSIVE, &[(50, 100); 20]), [0; 20]);
        assert_eq!(steps(RESPONSIVE, &[(0, 0); 20]), [0; 20]);
    }

    #[test]
    fn either_reason_is_enough() {
        // The share falls all the time: only the first reason holds.
        let falling = [(100, 100), (90, 100), (80, 100), (70, 100)];
        assert_eq!(steps(RESPONSIVE, &falling), [0, 20, 20, 30]);
        // It does not fall: both hold, in turns.
        assert_eq!(steps(RESPONSIVE, &[(60, 100); 5]), [0, 20, 30, 40, 50]);
        // The second reason in the third sample, in which the first does not hold.
        let mut policy = AutoConverge::new(Some(RESPONSIVE));
        let percent = [(60, 100), (70, 100), (80, 100)].map(|(dirty, sent)| {
            policy.observe(sample(dirty, sent));
            policy.percent()
        });
        assert_eq!(percent, [0, 20, 30]);
    }

    #[test]
    fn a_share_that_does_not_fall_and_is_low_is_no_reason() {
        assert_eq!(steps(RESPONSIVE, &[(40, 100); 20]), [0; 20]);
    }

    #[test]
    fn nothing_of_a_cancelled_migration_is_left_for_the_next() {
        let mut cancelled = AutoConverge::new(Some(RESPONSIVE));
        cancelled.observe(sample(60, 100));
        assert_eq!(cancelled.above, 1);
        assert_eq!(steps(RESPONSIVE, &[(60, 100)]), [0]);
    }

    #[test]
    fn a_period_in_which_nothing_was_sent_divides_nothing_by_zero() {
        for params in [
            RESPONSIVE,
            ThrottleParams {
                tailslow: true,
                ..RESPONSIVE
            },
        ] {
            let steps = steps(params, &[(1, 0), (0, 0), (5, 0), (u64::MAX, 0), (7, 0)]);
            assert!(
                steps.is_sorted() && *steps.last().unwrap() > 20,
                "{steps:?}"
            );
        }
    }

    #[test]
    fn a_share_of_zero_is_a_sample() {
        // A guest that wrote nothing, and then more each time: what is compared is 0 with 60, not nothing with 60.
        assert_eq!(steps(RESPONSIVE, &[(0, 100), (60, 100)]), [0, 0]);
        assert_eq!(
            steps(RESPONSIVE, &[(0, 100), (60, 100), (70, 100)]),
            [0, 0, 20]
        );
        let mut policy = AutoConverge::new(Some(RESPONSIVE));
        policy.observe(sample(0, 100));
        policy.observe(sample(60, 100));
        assert_eq!(policy.not_falling, 1);
    }

    #[test]
    fn a_throttle_that_was_taken_back_to_0_rises_again() {
        let mut policy = AutoConverge::new(Some(PARAMS));
        for _ in 0..4 {
            policy.observe(sample(60, 100));
        }
        assert_eq!(policy.percent(), 30);
        assert_eq!(policy.change(None), 0);
        assert!(!policy.can_rise());
        assert_eq!(policy.observe(sample(60, 100)), 0);
        assert_eq!(policy.change(Some(PARAMS)), 0);
        assert!(policy.can_rise());
        policy.observe(sample(60, 100));
        assert_eq!(policy.observe(sample(60, 100)), 20);
    }

    #[test]
    fn the_throttle_never_exceeds_its_maximum_even_if_that_is_lowered() {
        let params = ThrottleParams {
            max: 45,
            ..RESPONSIVE
        };
        let mut policy = AutoConverge::new(Some(params));
        for _ in 0..20 {
            assert!(policy.observe(sample(600, 100)) <= 45);
        }
        assert_eq!(policy.percent(), 45);
        assert!(!policy.can_rise());
        let lower = ThrottleParams { max: 30, ..params };
        assert_eq!(policy.change(Some(lower)), 30);
        assert_eq!(policy.observe(sample(600, 100)), 30);
    }

    #[test]
    fn a_tail_that_is_slow_takes_no_more_than_needed() {
        let params = ThrottleParams {
            tailslow: true,
            ..PARAMS
        };
        // A tenth too much: 80 % of the time becomes 72.7 %.
        let small = [(550, 1000); 4];
        assert_eq!(steps(params, &small), [0, 20, 20, 27]);
        // Far too much: a whole step.
        assert_eq!(steps(params, &[(5000, 1000); 4]), [0, 20, 20, 30]);
        // A step is never nothing.
        let nearly = [(1000, 1000), (1000, 1000), (501, 1000), (501, 1000)];
        assert_eq!(steps(params, &nearly), [0, 20, 20, 21]);
    }

    #[test]
    fn short_periods_are_put_together() {
        let mut policy = AutoConverge::new(Some(PARAMS));
        let short = Sample {
            period: SHORTEST_SAMPLE / 10,
            ..sample(60, 100)
        };
        let percent: Vec<u8> = (0..20).map(|_| policy.observe(short)).collect();
        assert_eq!(percent[..19], [0; 19]);
        assert_eq!(percent[19], 20);
    }

    #[test]
    fn a_parameter_out_of_range_is_named() {
        assert_eq!(PARAMS.checked(), Ok(PARAMS));
        let wrong = [
            ThrottleParams {
                initial: 0,
                ..PARAMS
            },
            ThrottleParams {
                increment: 100,
                ..PARAMS
            },
            ThrottleParams { max: 19, ..PARAMS },
            ThrottleParams {
                trigger_threshold: 101,
                ..PARAMS
            },
        ];
        let texts = wrong.map(|params| params.checked().unwrap_err().to_string());
        assert_eq!(
            texts,
            [
                "cpu-throttle-initial is 0, and must be 1 to 99",
                "cpu-throttle-increment is 100, and must be 1 to 99",
                "cpu-throttle-max is 19, and must be 20 to 99",
                "throttle-trigger-threshold is 101, and must be 1 to 100",
            ]
        );
    }
}
