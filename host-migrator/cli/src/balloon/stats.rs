// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon stats`

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use spec::balloon::{feature, stat};
use spec::control::Statistics;

use super::args::StatsArgs;
use super::device::{Device, why_not};
use super::{BalloonError, print};
use crate::size::Size;

/// How much longer than the interval the guest may take for its first statistics.
const GRACE: Duration = Duration::from_secs(10);
/// Statistics whose times differ by less are the same ones: their age has a resolution of milliseconds.
const SAME: Duration = Duration::from_millis(10);

pub(super) fn stats(args: &StatsArgs) -> Result<(), BalloonError> {
    let mut device = Device::connect(&args.device)?;
    if let Some(interval) = args.interval {
        device.set_statistics_interval(interval)?;
    }
    let milliseconds = device.status()?.statistics_interval_ms;
    let interval = Duration::from_millis(milliseconds);
    if args.watch && interval.is_zero() {
        let text = "the guest is not asked for statistics: give --interval, such as --interval 2s";
        return Err(BalloonError::Guest(text.into()));
    }
    if args.interval == Some(Duration::ZERO) {
        let json = json!({ "stats-interval-ms": milliseconds });
        return print(args.device.json, &json, "the guest is no longer asked");
    }
    let started = Instant::now();
    let mut shown = false;
    // With a new interval, only statistics from now on are shown.
    let mut last = args.interval.and_then(|_| started.checked_sub(SAME));
    loop {
        let newest = device.statistics()?.and_then(|statistics| {
            let age = Duration::from_millis(statistics.age_ms());
            Some((statistics, Instant::now().checked_sub(age)?))
        });
        match newest {
            Some((statistics, at)) if last.is_none_or(|last| at > last + SAME) => {
                print(
                    args.device.json,
                    &as_json(&statistics),
                    &as_text(&statistics),
                )?;
                if !args.watch {
                    return Ok(());
                }
                (shown, last) = (true, Some(at));
            }
            _ if !shown => give_up(&mut device, interval, started)?,
            _ => {}
        }
        thread::sleep((interval / 20).max(SAME));
    }
}

/// The error if it is clear that no statistics will come.
fn give_up(device: &mut Device, interval: Duration, started: Instant) -> Result<(), BalloonError> {
    let status = device.status()?;
    if status.negotiated & (1 << feature::STATS_VQ) == 0 {
        let text = why_not(&status, feature::STATS_VQ, "the statistics queue");
        return Err(BalloonError::Guest(text));
    }
    if interval.is_zero() {
        let text = "the guest has sent no statistics and is not asked for any: \
                    give --interval, as in --interval 2s";
        return Err(BalloonError::Guest(text.into()));
    }
    let after = started.elapsed();
    if after > interval + GRACE {
        let state = "the guest has sent no statistics".into();
        return Err(BalloonError::Timeout { after, state });
    }
    Ok(())
}

fn as_json(statistics: &Statistics) -> Value {
    let values: Map<String, Value> = statistics
        .values()
        .iter()
        .map(|&(tag, value)| (name(tag), json!(value)))
        .collect();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let at = now.saturating_sub(Duration::from_millis(statistics.age_ms()));
    json!({
        "age-ms": statistics.age_ms(),
        "last-update": at.as_secs(),
        "stats": values,
    })
}

fn as_text(statistics: &Statistics) -> String {
    let mut lines = vec![format!("{:.1} s old", statistics.age_ms() as f64 / 1000.0)];
    lines.extend(statistics.values().iter().map(|&(tag, value)| {
        let shown = match (value, is_memory(tag)) {
            // The value that QEMU and the Linux driver give for an unknown statistic.
            (u64::MAX, _) => "-".into(),
            (_, true) => Size(value).to_string(),
            (_, false) => value.to_string(),
        };
        format!("{:<20} {shown:>10}", name(tag))
    }));
    lines.join("\n") + "\n"
}

fn name(tag: u16) -> String {
    stat::name(tag).map_or_else(|| format!("tag-{tag}"), Into::into)
}

/// Whether the value of `tag` is a number of bytes.
fn is_memory(tag: u16) -> bool {
    stat::name(tag).is_some()
        && !matches!(
            tag,
            stat::MAJOR_FAULTS
                | stat::MINOR_FAULTS
                | stat::HUGETLB_ALLOCATIONS
                | stat::HUGETLB_FAILURES
                | stat::OOM_KILLS
                | stat::ALLOCATION_STALLS
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_tags_have_names_and_units_and_unknown_ones_stay_numbers() {
        let statistics = Statistics::new(
            1500,
            [
                (stat::FREE_MEMORY, 512 << 20),
                (stat::MAJOR_FAULTS, 7),
                (stat::SWAP_IN, u64::MAX),
                (777, 1 << 30),
            ],
        );
        let text = as_text(&statistics);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1.5 s old");
        assert_eq!(lines[1], "free-memory             512 MiB");
        assert_eq!(lines[2], "major-faults                  7");
        assert_eq!(lines[3], "swap-in                       -");
        assert_eq!(lines[4], "tag-777              1073741824");
        let json = as_json(&statistics);
        assert_eq!(json["stats"]["free-memory"], 512 << 20);
        assert_eq!(json["stats"]["tag-777"], 1 << 30);
    }
}
