// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What kept each vCPU from running the guest, as far as this host sees it. The guest need not help.

use std::fs;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::{Pid, gettid};

use crate::kvm_stats::KvmStats;

/// What kept a vCPU from running the guest since its machine was made. The parts exclude each other, but for `kernel`, in which
/// the host may also have let others run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuTimes {
    /// The guest was to run, and the vCPU was held by the throttle.
    pub throttled: Duration,
    /// The guest was stopped, for a migration or by an operator.
    pub paused: Duration,
    /// The vCPU could have run, and the host's processors ran others. None: this kernel does not say.
    pub waited: Option<Duration>,
    /// The host's kernel worked for the vCPU: it resolved page faults, those of the dirty log among them, and handled other
    /// exits. Counted in clock ticks, so it is right on average over seconds. None: this kernel does not say.
    pub kernel: Option<Duration>,
    /// Page faults that KVM has resolved for the vCPU: first touches of memory, and first writes to pages that the dirty log has
    /// protected. None: this kernel does not count them.
    pub faults: Option<u64>,
}

/// Reads the times of a machine's vCPUs, at any time and without waiting for anybody.
#[derive(Clone, Debug)]
pub struct VcpuWatch(Vec<Arc<Watched>>);

impl VcpuWatch {
    pub(crate) fn new(vcpus: Vec<Arc<Watched>>) -> Self {
        Self(vcpus)
    }

    /// The times of each vCPU.
    pub fn times(&self) -> Vec<VcpuTimes> {
        self.0.iter().map(|vcpu| vcpu.times()).collect()
    }
}

/// What is noted about one vCPU.
#[derive(Debug)]
pub(crate) struct Watched {
    throttled: AtomicU64,
    paused: AtomicU64,
    thread: OnceLock<Pid>,
    stats: Option<KvmStats>,
}

impl Watched {
    /// Nothing so far; with the counters of KVM, if it has them.
    pub(crate) fn new(stats: Option<KvmStats>) -> Self {
        Self {
            throttled: AtomicU64::new(0),
            paused: AtomicU64::new(0),
            thread: OnceLock::new(),
            stats,
        }
    }

    /// The calling thread runs this vCPU.
    pub(crate) fn is_this_thread(&self) {
        let _ = self.thread.set(gettid());
    }

    pub(crate) fn was_throttled(&self, time: Duration) {
        add(&self.throttled, time);
    }

    pub(crate) fn was_paused(&self, time: Duration) {
        add(&self.paused, time);
    }

    fn times(&self) -> VcpuTimes {
        let of =
            |nanoseconds: &AtomicU64| Duration::from_nanos(nanoseconds.load(Ordering::Relaxed));
        let thread = self.thread.get();
        VcpuTimes {
            throttled: of(&self.throttled),
            paused: of(&self.paused),
            waited: thread.and_then(|thread| waited(*thread)),
            kernel: thread.and_then(|thread| kernel(*thread)),
            faults: (self.stats.as_ref()).and_then(|stats| stats.faults().ok()),
        }
    }
}

fn add(nanoseconds: &AtomicU64, time: Duration) {
    let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    nanoseconds.fetch_add(time, Ordering::Relaxed);
}

/// How long `thread` has waited for a processor.
fn waited(thread: Pid) -> Option<Duration> {
    let text = of_thread(thread, "schedstat")?;
    let nanoseconds = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

/// How long the kernel has worked for `thread`, in which it did not run the guest.
fn kernel(thread: Pid) -> Option<Duration> {
    let text = of_thread(thread, "stat")?;
    // The name is in brackets and may contain anything. After it, system time is field 13.
    let fields = text.get(text.rfind(')')? + 1..)?;
    let ticks: u64 = fields.split_whitespace().nth(12)?.parse().ok()?;
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(ticks.saturating_mul(1000) / a_second))
}

fn of_thread(thread: Pid, file: &str) -> Option<String> {
    let thread = thread.as_raw_nonzero();
    fs::read_to_string(format!("/proc/self/task/{thread}/{file}")).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_makes_system_calls_has_time_in_the_kernel() {
        let watched = Watched::new(None);
        assert_eq!(watched.times().kernel, None);
        watched.is_this_thread();
        spec_testing::eventually("time in the kernel", || {
            let burst = Instant::now() + Duration::from_millis(50);
            while Instant::now() < burst {
                let _ = fs::metadata("/proc/self/stat");
            }
            watched.times().kernel.filter(|time| !time.is_zero())
        });
        watched.was_paused(Duration::from_millis(3));
        watched.was_paused(Duration::from_millis(4));
        assert_eq!(watched.times().paused, Duration::from_millis(7));
    }
}
