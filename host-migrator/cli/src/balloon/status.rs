// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon status`

use serde_json::json;
use spec::PAGE_SIZE;
use spec::balloon::feature;
use spec::control::BalloonStatus;

use super::args::DeviceArgs;
use super::device::Device;
use super::{BalloonError, print};
use crate::size::Size;

/// The features of the balloon, as the virtio specification names them.
const FEATURES: [(u32, &str); 6] = [
    (feature::MUST_TELL_HOST, "must-tell-host"),
    (feature::STATS_VQ, "stats"),
    (feature::DEFLATE_ON_OOM, "deflate-on-oom"),
    (feature::FREE_PAGE_HINT, "free-page-hint"),
    (feature::PAGE_POISON, "page-poison"),
    (feature::REPORTING, "reporting"),
];

pub(super) fn status(args: &DeviceArgs) -> Result<(), BalloonError> {
    let status = Device::connect(args)?.status()?;
    print(args.json, &as_json(&status), &as_text(&status))
}

fn as_json(status: &BalloonStatus) -> serde_json::Value {
    json!({
        "connected": status.connected,
        "driver-up": status.negotiated != 0,
        "running": status.running,
        "wanted-bytes": status.wanted_pages * PAGE_SIZE,
        "target-bytes": status.target_pages * PAGE_SIZE,
        "actual-bytes": status.actual_pages * PAGE_SIZE,
        "ballooned-bytes": status.ballooned_pages * PAGE_SIZE,
        "memory-bytes": status.memory_pages * PAGE_SIZE,
        "regions": status.regions,
        "stats-interval-ms": status.statistics_interval_ms,
        "features": {
            "offered": names(status.offered),
            "negotiated": names(status.negotiated),
        },
        "counters": {
            "inflated-pages": status.inflated_pages,
            "deflated-pages": status.deflated_pages,
            "reported-pages": status.reported_pages,
            "discarded-bytes": status.discarded_bytes,
            "discards": status.discards,
            "failed-discards": status.failed_discards,
            "out-of-range": status.out_of_range,
            "bad-buffers": status.bad_buffers,
        },
    })
}

fn as_text(status: &BalloonStatus) -> String {
    let pages = |pages: u64| Size(pages * PAGE_SIZE);
    let guest = match (status.connected, status.negotiated, status.running) {
        (false, ..) => "no VMM is connected".into(),
        (true, 0, _) => "a VMM is connected; the guest's driver is not up".into(),
        (true, _, false) => "the guest is stopped".into(),
        (true, _, true) => {
            let memory = pages(status.memory_pages);
            format!("running, {memory} in {} region(s)", status.regions)
        }
    };
    let asked = if status.wanted_pages > status.target_pages {
        format!(
            " (set to {}: more than the guest has)",
            pages(status.wanted_pages)
        )
    } else {
        String::new()
    };
    let statistics = match status.statistics_interval_ms {
        0 => "not asked for".into(),
        interval => format!("every {} s", interval as f64 / 1000.0),
    };
    let taken = |bit: u32| {
        if status.negotiated & (1 << bit) == 0 {
            " (not taken)"
        } else {
            ""
        }
    };
    let features: Vec<String> = FEATURES
        .iter()
        .filter(|(bit, _)| status.offered & (1 << bit) != 0)
        .map(|(bit, name)| format!("{name}{}", taken(*bit)))
        .collect();
    let mut lines = vec![
        format!("guest       {guest}"),
        format!("target      {}{asked}", pages(status.target_pages)),
        format!(
            "balloon     {}, the device has seen {} of it",
            pages(status.actual_pages),
            pages(status.ballooned_pages)
        ),
        format!("statistics  {statistics}"),
        format!("features    {}", features.join(", ")),
        format!(
            "so far      {} inflated, {} deflated, {} reported",
            pages(status.inflated_pages),
            pages(status.deflated_pages),
            pages(status.reported_pages)
        ),
        format!(
            "given back  {} in {} call(s)",
            Size(status.discarded_bytes),
            status.discards
        ),
    ];
    let bad = [
        (status.failed_discards, "failed call(s)"),
        (status.out_of_range, "page(s) or range(s) outside memory"),
        (status.bad_buffers, "invalid buffer(s)"),
    ];
    let bad: Vec<String> = bad
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if !bad.is_empty() {
        lines.push(format!("refused     {}", bad.join(", ")));
    }
    lines.join("\n")
}

fn names(features: u64) -> Vec<&'static str> {
    FEATURES
        .iter()
        .filter(|(bit, _)| features & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_is_not_as_it_was_wanted() {
        let mut status = BalloonStatus {
            offered: 0b1010,
            ..BalloonStatus::default()
        };
        assert!(as_text(&status).contains("no VMM is connected"));
        assert!(as_text(&status).contains("stats (not taken), free-page-hint (not taken)"));
        status.connected = true;
        assert!(as_text(&status).contains("driver is not up"));
        status.negotiated = 0b1000;
        status.running = true;
        status.memory_pages = 1 << 18;
        status.regions = 2;
        status.target_pages = 1 << 18;
        status.wanted_pages = 1 << 19;
        let text = as_text(&status);
        assert!(text.contains("running, 1.00 GiB in 2 region(s)"), "{text}");
        assert!(
            text.contains("1.00 GiB (set to 2.00 GiB: more than"),
            "{text}"
        );
        assert!(
            text.contains("stats (not taken), free-page-hint\n"),
            "{text}"
        );
        assert!(!text.contains("refused"));
        status.bad_buffers = 3;
        assert!(as_text(&status).contains("refused     3 invalid buffer(s)"));
        assert_eq!(
            as_json(&status)["features"]["negotiated"],
            json!(["free-page-hint"])
        );
    }
}
