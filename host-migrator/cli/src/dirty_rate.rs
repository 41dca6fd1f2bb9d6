// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna dirty-rate`: how fast a running guest writes.

use std::thread;
use std::time::Duration;

use crate::args::DirtyRateArgs;
use crate::control::{Client, Command, DirtyRateArguments, DirtyRateInfo, DirtyRateState};
use crate::jobs::{JobError, print};
use crate::size::Size;

/// How often the machine is asked.
const POLL: Duration = Duration::from_millis(100);
const MIB: f64 = (1 << 20) as f64;

/// Has the machine measure, and prints the result.
///
/// # Errors
/// [`JobError`] if the machine refuses or does not answer, or the measurement has no result.
pub fn dirty_rate(args: &DirtyRateArgs) -> Result<(), JobError> {
    let mut client = Client::connect(&args.control)?;
    client.tell(&Command::CalcDirtyRate(DirtyRateArguments {
        calc_time: args.seconds,
        mode: args.mode,
    }))?;
    let info: DirtyRateInfo = loop {
        let info: DirtyRateInfo = client.ask(&Command::QueryDirtyRate)?;
        if info.status != DirtyRateState::Measuring {
            break info;
        }
        thread::sleep(POLL);
    };
    if info.status == DirtyRateState::Failed {
        return Err(JobError::DirtyRate(info.error_desc.unwrap_or_default()));
    }
    print(&match args.json {
        true => serde_json::to_string_pretty(&info).unwrap_or_default(),
        false => as_text(&info),
    })
}

fn as_text(info: &DirtyRateInfo) -> String {
    let rates = |rates: &[f64]| {
        let rates: Vec<_> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
        rates.join(", ")
    };
    let mut lines = vec![
        format!(
            "dirty rate {:.1} MiB/s over {} s",
            info.dirty_rate.unwrap_or_default(),
            info.calc_time
        ),
        format!("each second {}", rates(&info.dirty_rate_by_second)),
    ];
    if !info.vcpu_dirty_rate.is_empty() {
        lines.push(format!("processors {}", rates(&info.vcpu_dirty_rate)));
    }
    if let Some(bytes) = info.distinct_bytes {
        let per_second = bytes as f64 / MIB / f64::from(info.calc_time.max(1));
        lines.push(format!(
            "written    {} of different pages, {per_second:.1} MiB/s",
            Size(bytes)
        ));
    }
    lines.extend(
        (info.sampled_pages)
            .map(|pages| format!("           estimated from {pages} sampled pages")),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_said_in_a_few_lines() {
        let info = DirtyRateInfo {
            calc_time: 2,
            dirty_rate: Some(1.25),
            dirty_rate_by_second: vec![1.0, 1.5],
            vcpu_dirty_rate: vec![0.25, 1.0],
            distinct_bytes: Some(2 << 20),
            sampled_pages: Some(7),
            ..DirtyRateInfo::default()
        };
        assert_eq!(
            as_text(&info),
            "dirty rate 1.2 MiB/s over 2 s\n\
             each second 1.0, 1.5\n\
             processors 0.2, 1.0\n\
             written    2.00 MiB of different pages, 1.0 MiB/s\n           estimated from 7 sampled pages"
        );
    }
}
