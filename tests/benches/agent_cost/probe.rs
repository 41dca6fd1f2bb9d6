// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program that measures in the guest: one thread that allocates a page, reads two clocks for a while, and repeats this.
//!
//! The thread never waits. So the difference between wall clock and the thread's processor time is time that the guest's
//! kernel has given to other threads. Time that the host takes from the guest counts on both clocks.

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// The program's first argument, which makes it measure.
pub const JOB: &str = "probe";
/// The file that ends it.
pub const STOP: &str = "/tmp/stop";
/// The file that exists once it measures.
pub const STARTED: &str = "/tmp/started";

/// More than 32 MiB, so that the C library makes a new mapping each time and the first write allocates a page.
const MAPPING: usize = 64 << 20;
/// How long it reads the clocks between two allocations.
const WATCH: Duration = Duration::from_micros(200);
/// How often it reads the kernel's figures.
const SAMPLE: Duration = Duration::from_millis(5);

/// Measures until it is stopped, and prints what it has found as JSON.
pub fn run() -> Result<(), Box<dyn Error>> {
    let mut allocations = Vec::with_capacity(1 << 20);
    let before = meminfo()?;
    let mut lowest = before;
    fs::write(STARTED, "")?;
    let began = Clocks::now();
    let (mut last, mut sampled, mut longest) = (began, began.wall, Duration::ZERO);
    loop {
        let start = Instant::now();
        allocate();
        let end = Instant::now();
        allocations.push(end - start);
        loop {
            let now = Clocks::now();
            longest = longest.max(now.stolen_since(last));
            last = now;
            if now.wall - end >= WATCH {
                break;
            }
        }
        if last.wall - sampled >= SAMPLE {
            let now = meminfo()?;
            lowest = (lowest.0.min(now.0), lowest.1.min(now.1));
            if Path::new(STOP).exists() {
                break;
            }
            sampled = last.wall;
        }
    }
    let end = Clocks::now();
    allocations.sort_unstable();
    let quantile = |part: usize| micros(allocations[(allocations.len() - 1) * part / 100]);
    let result = json!({
        "free-before": before.0,
        "available-before": before.1,
        "lowest-free": lowest.0,
        "lowest-available": lowest.1,
        "longest-gap-us": micros(longest),
        "stolen-us": micros(end.stolen_since(began)),
        "allocations": allocations.len(),
        "allocation-median-us": quantile(50),
        "allocation-p99-us": quantile(99),
    });
    println!("{result}");
    Ok(())
}

/// A reading of the two clocks.
#[derive(Clone, Copy)]
struct Clocks {
    wall: Instant,
    processor: Duration,
}

impl Clocks {
    fn now() -> Self {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Self {
            processor: Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32),
            wall: Instant::now(),
        }
    }

    /// How long other threads had the processor.
    fn stolen_since(self, before: Self) -> Duration {
        let own = self.processor.saturating_sub(before.processor);
        (self.wall - before.wall).saturating_sub(own)
    }
}

/// Maps memory, writes to one page of it, and unmaps it.
fn allocate() {
    let mut memory = vec![0u8; MAPPING];
    memory[MAPPING / 2] = 1;
    black_box(&mut memory);
}

/// MemFree and MemAvailable, in bytes.
fn meminfo() -> Result<(u64, u64), Box<dyn Error>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    let found = field("MemFree:").zip(field("MemAvailable:"));
    let (free, available) = found.ok_or("/proc/meminfo lacks MemFree or MemAvailable")?;
    Ok((free * 1024, available * 1024))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
