// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest reports about itself on the serial console.

use std::fs;
use std::io::{Write, stdout};
use std::time::{SystemTime, UNIX_EPOCH};

/// The state of the work; printed as one line of JSON.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Memory is filled and partly freed; the steady work has begun.
    pub ready: bool,
    /// Full passes of the check over all memory in use.
    pub full_passes: u64,
    /// Stamps checked.
    pub checks: u64,
    /// Stamps that were wrong.
    pub wrong: u64,
    /// Pages rewritten.
    pub writes: u64,
    /// Pages taken and freed again.
    pub churned: u64,
    /// Microseconds of the longest time between two ticks of the work since the last report: more than the tick
    /// takes when the guest, or its processor, stood still.
    pub longest_gap: u64,
    /// A wrong stamp, or the reason why the guest did not start.
    pub failure: Option<String>,
}

impl Report {
    /// Prints the line. A console that cannot be written must not stop the guest, so an error has nowhere
    /// to go.
    pub fn print(&self) {
        let Self {
            ready,
            full_passes,
            checks,
            wrong,
            writes,
            churned,
            longest_gap,
            failure,
        } = self;
        let free = free_bytes();
        let realtime = realtime();
        // Our messages are plain ASCII, for which a string's debug form is a JSON string.
        let failure = failure
            .as_ref()
            .map_or("null".into(), |why| format!("{why:?}"));
        let _ = writeln!(
            stdout(),
            "lacuna-guest: {{\"ready\":{ready},\"free-bytes\":{free},\"full-passes\":{full_passes},\
             \"checks\":{checks},\"wrong\":{wrong},\"writes\":{writes},\"churned\":{churned},\
             \"longest-gap\":{longest_gap},\"realtime\":{realtime},\"failure\":{failure}}}"
        );
    }
}

/// Nanoseconds since 1970 by the guest's wall clock; 0 before.
fn realtime() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_nanos() as u64)
}

/// Memory that is free according to the kernel; 0 if it does not say.
fn free_bytes() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
