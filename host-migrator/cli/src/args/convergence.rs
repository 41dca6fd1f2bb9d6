// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags for the migration of a guest that writes fast, and `lacuna set`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use host_migrator::SYNC_INTERVAL;

use super::values::{milliseconds, socket_path};
use crate::control::TuningArguments;
use crate::size::Size;

/// The heading of these flags in the help.
pub(super) const HEADING: &str = "Guests that write faster than the link sends";

/// How the migration of a busy guest comes to an end.
#[derive(Clone, Debug, Args)]
pub struct ConvergenceArgs {
    /// Throttle the guest's processors step by step if it writes too fast for the migration to end
    #[arg(long, help_heading = HEADING)]
    pub auto_converge: bool,
    /// The numbers of the throttle.
    #[command(flatten)]
    pub throttle: ThrottleArgs,
    /// If the guest writes too fast for the migration to end, let each of its processors make at most so much memory dirty, in megabytes
    /// (2^20 bytes) a second. A processor that writes less loses no time. It needs --dirty-log ring
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "auto_converge", help_heading = HEADING)]
    pub vcpu_dirty_limit: Option<u64>,
    /// What the migration may do, from which the machine chooses.
    #[command(flatten)]
    pub goals: GoalArgs,
    /// With --auto-converge, or with what is wanted: harvest the dirty log in the middle of a round, too, whenever this many milliseconds have passed, so that
    /// the throttle need not wait for the end of a long round. 0: at the end of rounds alone
    #[arg(long, value_name = "MS", default_value_t = SYNC_INTERVAL.as_millis() as u64, help_heading = HEADING)]
    pub sync_interval: u64,
}

/// What the migration may do, from which the machine chooses what is needed.
#[derive(Clone, Debug, Args)]
pub struct GoalArgs {
    /// Leave it to the machine how the migration ends: it may take at most this much of the guest's time, in percent, 0 to 99. It takes
    /// no more than needed, and nothing from a guest whose migration ends without [default: 0]
    #[arg(long, value_name = "N", conflicts_with = "auto_converge", help_heading = HEADING)]
    pub max_guest_slowdown: Option<u8>,
    /// Leave it to the machine how the migration ends: it should have ended this many milliseconds after its start
    #[arg(long, value_name = "MS", conflicts_with = "auto_converge", help_heading = HEADING)]
    pub deadline: Option<u64>,
    /// Leave it to the machine how the migration ends: it may stop the guest for this long, in milliseconds, if the migration would not end
    /// otherwise [default: --downtime-limit]
    #[arg(long, value_name = "MS", conflicts_with = "auto_converge", help_heading = HEADING)]
    pub downtime_limit_max: Option<u64>,
}

/// The numbers of the throttle.
#[derive(Clone, Debug, Args)]
pub struct ThrottleArgs {
    /// First step of the throttle, in percent of the processors' time, 1 to 99 [default: 20]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub cpu_throttle_initial: Option<u8>,
    /// Further steps of the throttle, in percent, 1 to 99 [default: 10]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub cpu_throttle_increment: Option<u8>,
    /// Most that the throttle takes, in percent, up to 99 [default: 99]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub cpu_throttle_max: Option<u8>,
    /// Take smaller steps where they are enough [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = HEADING)]
    pub cpu_throttle_tailslow: Option<bool>,
    /// Also throttle the guest further as soon as what it dirties for each page that is sent no longer falls: the throttle rises about
    /// twice as fast [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = HEADING)]
    pub cpu_throttle_responsive: Option<bool>,
    /// The guest writes too fast if it dirties more than this many pages for each hundred that are sent, 1 to 100 [default: 50]
    #[arg(long, value_name = "N", help_heading = HEADING)]
    pub throttle_trigger_threshold: Option<u8>,
}

impl ConvergenceArgs {
    /// These flags as arguments of the command.
    #[must_use]
    pub fn tuning(&self) -> TuningArguments {
        TuningArguments {
            auto_converge: Some(self.auto_converge),
            sync_interval: Some(self.sync_interval),
            vcpu_dirty_limit: self.vcpu_dirty_limit,
            max_guest_slowdown: self.goals.max_guest_slowdown,
            deadline: self.goals.deadline,
            downtime_limit_max: self.goals.downtime_limit_max,
            ..self.throttle.tuning()
        }
    }
}

impl ThrottleArgs {
    fn tuning(&self) -> TuningArguments {
        TuningArguments {
            cpu_throttle_initial: self.cpu_throttle_initial,
            cpu_throttle_increment: self.cpu_throttle_increment,
            cpu_throttle_max: self.cpu_throttle_max,
            cpu_throttle_tailslow: self.cpu_throttle_tailslow,
            cpu_throttle_responsive: self.cpu_throttle_responsive,
            throttle_trigger_threshold: self.throttle_trigger_threshold,
            ..TuningArguments::default()
        }
    }
}

/// `lacuna set`
#[derive(Clone, Debug, Args)]
pub struct SetArgs {
    /// The machine's control socket
    #[arg(long, value_name = "SOCKET", value_parser = socket_path())]
    pub control: PathBuf,
    /// Greatest bandwidth, in bytes a second; 0: all that the link has
    #[arg(long, value_name = "SIZE")]
    pub max_bandwidth: Option<Size>,
    /// Greatest downtime, in milliseconds
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub downtime_limit: Option<Duration>,
    /// Whether the guest is throttled if it writes too fast
    #[arg(long, value_name = "BOOL")]
    pub auto_converge: Option<bool>,
    /// The numbers of the throttle.
    #[command(flatten)]
    pub throttle: ThrottleArgs,
    /// Most that each processor of the guest makes dirty, in megabytes a second; 0: no limit
    #[arg(long, value_name = "MB")]
    pub vcpu_dirty_limit: Option<u64>,
    /// What the migration may do.
    #[command(flatten)]
    pub goals: GoalArgs,
    /// Time between harvests of the dirty log in the middle of a round, in milliseconds; 0: none
    #[arg(long, value_name = "MS")]
    pub sync_interval: Option<u64>,
}

impl SetArgs {
    /// These flags as arguments of the command.
    #[must_use]
    pub fn tuning(&self) -> TuningArguments {
        TuningArguments {
            max_bandwidth: self.max_bandwidth.map(|size| size.0),
            downtime_limit: self.downtime_limit.map(|time| time.as_millis() as u64),
            auto_converge: self.auto_converge,
            sync_interval: self.sync_interval,
            vcpu_dirty_limit: self.vcpu_dirty_limit,
            max_guest_slowdown: self.goals.max_guest_slowdown,
            deadline: self.goals.deadline,
            downtime_limit_max: self.goals.downtime_limit_max,
            ..self.throttle.tuning()
        }
    }
}
