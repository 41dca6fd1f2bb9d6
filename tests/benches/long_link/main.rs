// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The throughput of a link with a round trip of 10 ms, if the kernel sizes the sockets' buffers, and if a program sets
//! them to 4 MiB.
//!
//! `cargo bench -p tests --bench long_link`
//!
//! Everything runs in the outer machine of the nested lane: its kernel can delay packets, and nothing else uses its loopback
//! device.
//!
//! | module | what it is |
//! |---|---|
//! | [`job`] | what runs in the outer machine |
//! | [`engine`] | a migration without KVM, by the engine |
//! | [`netem`] | delays the packets there |

mod engine;
mod job;
mod netem;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use lacuna::nested::{Lane, Line, NestedError, Settings};
use serde_json::Value;

/// A time limit for the job that only a hang exceeds.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Memory of the outer machine besides that of source and destination.
const OVERHEAD_BYTES: u64 = 1 << 30;

fn main() -> ExitCode {
    // In the outer machine this program is the job.
    let result = match std::env::args().nth(1) {
        Some(first) if first == job::JOB => job::run(),
        _ => measure(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Box<dyn Error>> {
    let settings = Settings {
        memory_bytes: 2 * job::GUEST_BYTES + OVERHEAD_BYTES,
        timeout: PATIENCE,
    };
    let mut lane = match Lane::prepare(&std::env::current_exe()?, settings) {
        Ok(lane) => lane,
        Err(why @ (NestedError::Kernel(_) | NestedError::Package(_))) => {
            println!("skipped: {why}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let mut lines = Vec::new();
    let status = lane.run(&[job::JOB], |line| match line {
        Line::Output(line) => {
            // The job also prints its progress.
            eprintln!("{line}");
            lines.push(line.to_owned());
        }
        Line::Error(line) => eprintln!("{line}"),
    })?;
    if status != 0 {
        return Err(format!("the job ended with {status}").into());
    }
    let measured: Result<Vec<Value>, _> = lines
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect();
    print_table(&measured?);
    Ok(())
}

/// A row for each kind of measurement, with the medians and ranges of its runs.
fn print_table(measured: &[Value]) {
    println!(
        "| round trip ms | what | kernel sizes the buffers, MB/s | set to 4 MiB, MB/s | ratio |"
    );
    println!("|---|---|---|---|---|");
    let kind = |value: &Value| ["round_trip_ms", "what"].map(|name| value[name].clone());
    let mut kinds: Vec<[Value; 2]> = Vec::new();
    for value in measured {
        if !kinds.contains(&kind(value)) {
            kinds.push(kind(value));
        }
    }
    for of_kind in kinds {
        let runs: Vec<_> = measured
            .iter()
            .filter(|value| kind(value) == of_kind)
            .collect();
        let cells = ["kernels", "set", "ratio"].map(|name| {
            let mut values: Vec<f64> = runs.iter().filter_map(|run| run[name].as_f64()).collect();
            values.sort_by(f64::total_cmp);
            let [least, most] =
                [values.first(), values.last()].map(|value| value.copied().unwrap_or_default());
            let median = values.get(values.len() / 2).copied().unwrap_or_default();
            format!("{median:.1} ({least:.1}–{most:.1})")
        });
        let [round_trip, what] = of_kind;
        let what = what.as_str().unwrap_or_default();
        println!("| {round_trip} | {what} | {} |", cells.join(" | "));
    }
}
