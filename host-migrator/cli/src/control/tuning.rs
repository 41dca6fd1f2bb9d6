// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What may be changed while a migration runs: the arguments of `migrate-set-parameters`, and a part of those of `migrate`.

use std::num::NonZeroU64;
use std::time::Duration;

use host_migrator::{Goals, ThrottleParams, Tuning};
use serde::{Deserialize, Serialize};
use spec::PAGE_SIZE;

/// Parameters of a running migration. One that is left out stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TuningArguments {
    /// Greatest bandwidth in bytes a second; 0: all that the link has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Greatest downtime in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Whether the guest is throttled if it writes too fast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_converge: Option<bool>,
    /// The first step of the throttle, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_initial: Option<u8>,
    /// Each further step, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_increment: Option<u8>,
    /// The most, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_max: Option<u8>,
    /// Steps are smaller where that is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_tailslow: Option<bool>,
    /// The throttle also rises when the share of dirtied pages does not fall.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_responsive: Option<bool>,
    /// Pages dirtied for each hundred that are sent, from which the guest writes too fast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_trigger_threshold: Option<u8>,
    /// The most that each vCPU of a guest that writes too fast may make dirty, in megabytes (2^20 bytes) a second; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpu_dirty_limit: Option<u64>,
    /// The most of its time that the guest may lose, in percent; it alone, or one of the next two, leaves it to the machine how the
    /// migration ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_guest_slowdown: Option<u8>,
    /// Milliseconds after which the migration should have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// The longest downtime in milliseconds, if the migration would not end otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit_max: Option<u64>,
    /// Milliseconds between harvests in the middle of a round; 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_interval: Option<u64>,
}

impl TuningArguments {
    /// `tuning` with these changes.
    ///
    /// # Errors
    /// A sentence, if a value is out of its range or has no effect.
    pub fn on(&self, tuning: Tuning) -> Result<Tuning, String> {
        let mut changed = tuning;
        match self.max_bandwidth {
            None => {}
            Some(0) => changed.max_bandwidth = None,
            Some(slow) if slow < PAGE_SIZE => {
                return Err(format!(
                    "a max-bandwidth of {slow} bytes a second is less than one page; 0 is all that the link has"
                ));
            }
            some => changed.max_bandwidth = some,
        }
        if let Some(limit) = self.downtime_limit {
            changed.downtime_limit = Duration::from_millis(limit);
        }
        if let Some(interval) = self.sync_interval {
            changed.sync_interval = (interval > 0).then(|| Duration::from_millis(interval));
        }
        let is_on = (self.auto_converge).unwrap_or(tuning.auto_converge.is_some());
        let throttle = self.throttle(tuning.auto_converge.unwrap_or_default());
        let throttle = throttle.checked().map_err(|error| error.to_string())?;
        if !is_on && self.has_numbers() {
            let text = "the guest is not throttled without auto-converge: switch it on, or leave the throttle's numbers out";
            return Err(text.into());
        }
        changed.auto_converge = is_on.then_some(throttle);
        if let Some(limit) = self.vcpu_dirty_limit {
            changed.vcpu_dirty_limit = NonZeroU64::new(limit.saturating_mul(1 << 20));
        }
        changed.goals = self.goals(tuning.goals, changed.downtime_limit)?;
        if changed.goals.is_some() && is_on {
            let text = "deadline, max-guest-slowdown and downtime-limit-max leave it to the machine how far the guest is throttled: \
                        leave auto-converge out";
            return Err(text.into());
        }
        if changed.vcpu_dirty_limit.is_some() && (is_on || changed.goals.is_some()) {
            let text = "vcpu-dirty-limit slows the guest down by itself: leave auto-converge, deadline, max-guest-slowdown and \
                        downtime-limit-max out";
            return Err(text.into());
        }
        Ok(changed)
    }

    fn goals(&self, before: Option<Goals>, limit: Duration) -> Result<Option<Goals>, String> {
        let wants = [self.deadline, self.downtime_limit_max];
        let wanted = wants.iter().any(Option::is_some) || self.max_guest_slowdown.is_some();
        if !wanted && before.is_none() {
            return Ok(None);
        }
        let before = before.unwrap_or(Goals {
            downtime_limit: limit,
            most_downtime: limit,
            deadline: None,
            max_guest_slowdown: 0,
        });
        let goals = Goals {
            downtime_limit: limit,
            most_downtime: (self.downtime_limit_max)
                .map_or(before.most_downtime.max(limit), Duration::from_millis),
            deadline: self.deadline.map(Duration::from_millis).or(before.deadline),
            max_guest_slowdown: (self.max_guest_slowdown).unwrap_or(before.max_guest_slowdown),
        };
        if goals.max_guest_slowdown > 99 {
            let percent = goals.max_guest_slowdown;
            return Err(format!(
                "max-guest-slowdown is {percent}, and must be 0 to 99"
            ));
        }
        if goals.most_downtime < limit {
            return Err("downtime-limit-max is less than downtime-limit".into());
        }
        Ok(Some(goals))
    }

    fn throttle(&self, before: ThrottleParams) -> ThrottleParams {
        ThrottleParams {
            initial: self.cpu_throttle_initial.unwrap_or(before.initial),
            increment: self.cpu_throttle_increment.unwrap_or(before.increment),
            max: self.cpu_throttle_max.unwrap_or(before.max),
            tailslow: self.cpu_throttle_tailslow.unwrap_or(before.tailslow),
            responsive: self.cpu_throttle_responsive.unwrap_or(before.responsive),
            trigger_threshold: (self.throttle_trigger_threshold)
                .unwrap_or(before.trigger_threshold),
        }
    }

    /// Whether there are numbers of the throttle.
    fn has_numbers(&self) -> bool {
        let none = Self {
            max_bandwidth: None,
            downtime_limit: None,
            auto_converge: None,
            vcpu_dirty_limit: None,
            max_guest_slowdown: None,
            deadline: None,
            downtime_limit_max: None,
            sync_interval: None,
            ..*self
        };
        none != Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host_migrator::MigrationParams;

    fn on(arguments: TuningArguments) -> Result<Tuning, String> {
        arguments.on(MigrationParams::default().tuning())
    }

    #[test]
    fn what_is_left_out_stays_as_it_is() {
        let before = MigrationParams::default().tuning();
        assert_eq!(on(TuningArguments::default()), Ok(before));
        let arguments = TuningArguments {
            auto_converge: Some(true),
            cpu_throttle_increment: Some(7),
            sync_interval: Some(0),
            ..Default::default()
        };
        let tuned = on(arguments).unwrap();
        let throttle = tuned.auto_converge.unwrap();
        assert_eq!((throttle.initial, throttle.increment), (20, 7));
        assert_eq!(tuned.sync_interval, None);
        let faster = TuningArguments {
            cpu_throttle_initial: Some(50),
            max_bandwidth: Some(1 << 20),
            ..Default::default()
        };
        let tuned = faster.on(tuned).unwrap();
        let throttle = tuned.auto_converge.unwrap();
        assert_eq!((throttle.initial, throttle.increment), (50, 7));
        assert_eq!(tuned.max_bandwidth, Some(1 << 20));
    }

    #[test]
    fn what_the_operator_wants_stands_until_it_is_changed() {
        let wants = TuningArguments {
            deadline: Some(60_000),
            max_guest_slowdown: Some(50),
            ..Default::default()
        };
        let tuned = on(wants).unwrap();
        let longer = TuningArguments {
            downtime_limit: Some(1000),
            ..Default::default()
        };
        let goals = longer.on(tuned).unwrap().goals.unwrap();
        let second = Duration::from_secs(1);
        assert_eq!(goals.deadline, Some(60 * second));
        assert_eq!(
            (goals.downtime_limit, goals.most_downtime),
            (second, second)
        );
        assert_eq!(goals.max_guest_slowdown, 50);
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        let throttled = TuningArguments {
            auto_converge: Some(true),
            ..Default::default()
        };
        let cases = [
            (
                TuningArguments {
                    cpu_throttle_max: Some(100),
                    ..throttled
                },
                "cpu-throttle-max is 100",
            ),
            (
                TuningArguments {
                    cpu_throttle_max: Some(10),
                    ..throttled
                },
                "cpu-throttle-max is 10, and must be 20 to 99",
            ),
            (
                TuningArguments {
                    throttle_trigger_threshold: Some(0),
                    ..throttled
                },
                "throttle-trigger-threshold is 0",
            ),
            (
                TuningArguments {
                    max_bandwidth: Some(10),
                    ..throttled
                },
                "less than one page",
            ),
            (
                TuningArguments {
                    cpu_throttle_initial: Some(30),
                    ..Default::default()
                },
                "not throttled without auto-converge",
            ),
            (
                TuningArguments {
                    deadline: Some(1000),
                    ..throttled
                },
                "leave auto-converge out",
            ),
            (
                TuningArguments {
                    vcpu_dirty_limit: Some(10),
                    ..throttled
                },
                "vcpu-dirty-limit slows the guest down by itself",
            ),
            (
                TuningArguments {
                    max_guest_slowdown: Some(100),
                    ..Default::default()
                },
                "max-guest-slowdown is 100",
            ),
            (
                TuningArguments {
                    downtime_limit_max: Some(10),
                    ..Default::default()
                },
                "less than downtime-limit",
            ),
        ];
        for (arguments, reason) in cases {
            let error = on(arguments).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
