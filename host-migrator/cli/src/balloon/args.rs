// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The flags of `lacuna balloon`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use spec::PAGE_SIZE;

use crate::args::values::socket_path;
use crate::size::Size;

/// `lacuna balloon`
#[derive(Clone, Debug, Args)]
pub struct BalloonArgs {
    /// What to do.
    #[command(subcommand)]
    pub job: BalloonJob,
}

/// One job each.
#[derive(Clone, Debug, Subcommand)]
pub enum BalloonJob {
    /// Run the device: a vhost-user back end (the program vhost-device-balloon)
    Device(Box<vhost_device_balloon::Args>),
    /// Set the balloon's target: how much memory the guest gives up
    Target(TargetArgs),
    /// Show the guest's memory statistics
    Stats(StatsArgs),
    /// Show the balloon: target, size, guest memory, features, counters
    Status(DeviceArgs),
    /// Ask the guest which memory is free, without a migration
    Hints(HintsArgs),
    /// Ask the guest which memory is free, and say what a migration would send with hints and without
    Estimate(EstimateArgs),
    /// Show free and ballooned memory, as numbers and as a picture of the address space
    Map(MapArgs),
}

/// Which device, and how to answer.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Control socket of the balloon device
    #[arg(short, long, value_name = "PATH", value_parser = socket_path())]
    pub control_socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `lacuna balloon target`
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("goal").required(true))]
pub struct TargetArgs {
    /// Size of the balloon: the memory that the guest gives up
    #[arg(value_name = "SIZE", group = "goal")]
    pub balloon: Option<Size>,
    /// Memory that the guest keeps, as in QEMU's `balloon` command
    #[arg(long, value_name = "SIZE", group = "goal")]
    pub guest_memory: Option<Size>,
    /// Wait until the balloon has reached the target
    #[arg(long)]
    pub wait: bool,
    /// With --wait: give up after this time; default: never
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "wait")]
    pub timeout: Option<Duration>,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `lacuna balloon stats`
#[derive(Clone, Debug, Args)]
pub struct StatsArgs {
    /// Ask the guest for statistics this often from now on, such as 2s or 500ms; 0 stops asking
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub interval: Option<Duration>,
    /// Keep running and show every new set of statistics
    #[arg(long)]
    pub watch: bool,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `lacuna balloon hints`
#[derive(Clone, Debug, Args)]
pub struct HintsArgs {
    /// What to do.
    #[command(subcommand)]
    pub job: HintsJob,
}

/// What to do with a round of hints that a person asks for.
#[derive(Clone, Debug, Subcommand)]
pub enum HintsJob {
    /// Ask the guest for its free pages, wait until it has hinted them all, and give them back
    Start(StartArgs),
    /// End a round that was started with --detach, and give the guest its free pages back
    Stop(DeviceArgs),
    /// Show what the guest has hinted so far, and whether a migration or a person asked
    Status(DeviceArgs),
}

/// `lacuna balloon hints start`
#[derive(Clone, Debug, Args)]
pub struct StartArgs {
    /// Do not wait. The guest does not use its hinted pages until `hints stop`, or until the device's
    /// --hint-round-limit (default: one minute) has passed
    #[arg(long)]
    pub detach: bool,
    /// End the round after this time, even if the guest has not finished
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s", conflicts_with = "detach")]
    pub timeout: Duration,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `lacuna balloon estimate`
#[derive(Clone, Debug, Args)]
pub struct EstimateArgs {
    /// What the link takes in a second
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = some_bytes)]
    pub bandwidth: Size,
    /// What the guest writes in a second, to pages that need to be sent again
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub dirty_rate: Size,
    /// Give up after this time, if the guest has not told all its free memory
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `lacuna balloon map`
#[derive(Clone, Debug, Args)]
pub struct MapArgs {
    /// Ask the guest for its free pages first, as `hints start` does
    #[arg(long)]
    pub hint: bool,
    /// Write the picture to this file, as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Columns of the picture on the terminal; default: the terminal's width, or 80
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(24..))]
    pub width: Option<u16>,
    /// Which device.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Reads a size of at least a page.
fn some_bytes(text: &str) -> Result<Size, String> {
    match text.parse::<Size>() {
        Ok(Size(..PAGE_SIZE)) => Err("a link takes at least a page (4K) a second".into()),
        Ok(size) => Ok(size),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads `2s`, `500ms`, `1m`, `2` (seconds).
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(milliseconds)
        .and_then(|(number, unit)| number.checked_mul(unit))
        .map(Duration::from_millis)
        .ok_or_else(|| {
            format!("'{text}' is not a time: write a whole number and ms, s, m or h, such as 2s")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("2s", 2000),
            ("2", 2000),
            ("500ms", 500),
            ("0", 0),
            ("3m", 180_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "1.5s",
            "-1s",
            "2 s",
            "2days",
            "18446744073709551615h",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
