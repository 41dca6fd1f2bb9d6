// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An emulator that stands still: none of its threads has run for a while.
//!
//! QEMU 7.2 sometimes loses the timer of a processor with SVM: the processor halts with no timer armed, and nothing wakes
//! it up again. It was seen in two of about fifteen runs of the comparison with QEMU, once in a migration of QEMU's and once
//! in one of ours. A Linux that is only idle runs several times a second.

use std::fs;
use std::time::{Duration, Instant};

/// How long no thread may run. A machine that shares its processors with many others runs now and then all the same.
const PATIENCE: Duration = Duration::from_secs(60);

/// Watches a process.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    patience: Duration,
    last: Option<Activity>,
    since: Instant,
}

/// For each thread: times that it gave up or lost its processor, and its time on one.
type Activity = Vec<(String, Vec<u64>)>;

impl Watch {
    /// Of the process `pid`, from now on.
    pub fn new(pid: u32) -> Self {
        Self {
            pid,
            patience: PATIENCE,
            last: None,
            since: Instant::now(),
        }
    }

    /// Whether the process has stood still for too long. To be asked every few seconds.
    pub fn stands_still(&mut self) -> bool {
        let activity = activity(self.pid);
        if self.last != activity || activity.is_none() {
            self.last = activity;
            self.since = Instant::now();
        }
        self.since.elapsed() >= self.patience && self.last.is_some()
    }
}

/// What all threads of `pid` have done so far; none if that cannot be read.
fn activity(pid: u32) -> Option<Activity> {
    let mut threads = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let folder = thread.ok()?.path();
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let switches = status.lines().filter(|line| line.contains("ctxt_switches"));
        let numbers = switches.filter_map(|line| line.split_whitespace().last()?.parse().ok());
        let schedule = fs::read_to_string(folder.join("schedstat")).unwrap_or_default();
        let on_cpu = schedule
            .split(' ')
            .next()
            .and_then(|time| time.parse().ok());
        let name = folder.file_name()?.to_string_lossy().into_owned();
        threads.push((name, numbers.chain(on_cpu).collect()));
    }
    threads.sort();
    Some(threads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};
    use std::thread;

    fn watched(command: &str) -> (Child, Watch) {
        let child = Command::new("sh").args(["-c", command]).spawn();
        let child = child.expect("a shell");
        let watch = Watch {
            patience: Duration::from_millis(300),
            ..Watch::new(child.id())
        };
        (child, watch)
    }

    /// Asks until the process stands still, but at most `times`.
    fn is_seen(watch: &mut Watch, times: u32) -> bool {
        (0..times).any(|_| {
            thread::sleep(Duration::from_millis(20));
            watch.stands_still()
        })
    }

    #[test]
    fn a_process_that_waits_for_ever_stands_still_and_one_that_works_does_not() {
        let (mut waits, mut watch) = watched("exec sleep 1000");
        assert!(is_seen(&mut watch, 10_000));
        let (mut works, mut watch) = watched("while :; do :; done");
        assert!(!is_seen(&mut watch, 50));
        for child in [&mut waits, &mut works] {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        assert!(!watch.stands_still(), "it is not there any more");
    }
}
