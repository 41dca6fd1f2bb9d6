// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What keeps the guest from running: shares of its processors' time between two looks, and its own longest gap.

use std::time::Instant;

use crate::machine::{Status, VcpuStatus};

/// The shortest time in seconds that shares are measured over.
const SPAN: f64 = 0.2;

/// Measures what keeps the guest from running.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    before: Option<(Instant, VcpuStatus)>,
    shares: Vec<(&'static str, f64)>,
}

impl Stalls {
    /// Takes a look at the machine at `now`.
    pub(super) fn look(&mut self, now: Instant, status: &Status) {
        let sum = status.vcpus.iter().fold(VcpuStatus::default(), add);
        let before = self.before.get_or_insert_with(|| (now, sum.clone()));
        let seconds = now.saturating_duration_since(before.0).as_secs_f64();
        if seconds < SPAN {
            return;
        }
        let (_, before) = std::mem::replace(before, (now, sum.clone()));
        let whole = seconds * 10.0 * status.vcpus.len().max(1) as f64;
        let share =
            |name, now: f64, before: f64| (name, ((now - before) / whole).clamp(0.0, 100.0));
        let mut shares = vec![
            share("throttled", sum.throttled_ms, before.throttled_ms),
            share("stopped", sum.paused_ms, before.paused_ms),
        ];
        let known = [
            ("waiting for this host", sum.waited_ms, before.waited_ms),
            ("in faults and exits", sum.kernel_ms, before.kernel_ms),
        ];
        let known = known.map(|(name, now, before)| Some(share(name, now?, before?)));
        shares.extend(known.into_iter().flatten());
        self.shares = shares;
    }

    /// What was seen, in words; none if nothing is known of the vCPUs.
    pub(super) fn words(&self, status: &Status) -> Option<String> {
        let gaps = status.vcpus.iter().filter_map(|vcpu| vcpu.gap_ms);
        let longest = gaps
            .map(|gaps| (gaps.max, gaps.p999))
            .reduce(|one, other| (one.0.max(other.0), one.1.max(other.1)));
        let of_linux = status.guest.as_ref().map_or(0, |guest| guest.longest_gap);
        let mut parts: Vec<String> = (self.shares.iter())
            .filter(|(_, share)| *share >= 0.5)
            .map(|(name, share)| format!("{share:.0} % {name}"))
            .collect();
        match longest {
            Some((longest, p999)) => parts.push(format!(
                "longest gap so far {longest:.1} ms, p99.9 {p999:.1} ms"
            )),
            None if of_linux > 0 => {
                let ms = of_linux as f64 / 1000.0;
                parts.push(format!("longest gap in its last second {ms:.1} ms"));
            }
            None => {}
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// The times of both, where both are known.
fn add(sum: VcpuStatus, one: &VcpuStatus) -> VcpuStatus {
    let both = |sum: Option<f64>, one: Option<f64>| Some(sum.unwrap_or(0.0) + one?);
    VcpuStatus {
        throttled_ms: sum.throttled_ms + one.throttled_ms,
        paused_ms: sum.paused_ms + one.paused_ms,
        waited_ms: both(sum.waited_ms, one.waited_ms),
        kernel_ms: both(sum.kernel_ms, one.kernel_ms),
        ..VcpuStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn shares_are_those_of_all_vcpus_between_two_looks() {
        let mut status: Status = serde_json::from_value(serde_json::json!({
            "machine": "running", "guest": null, "incoming": null,
            "ownership": host_migrator::OwnershipRecord::here().get(),
            "migration": host_migrator::MigrationStatus::default(),
            "vcpus": [{"throttled-ms": 1000.0, "waited-ms": 5.0}, {"throttled-ms": 0.0, "waited-ms": 5.0}],
        }))
        .unwrap();
        let (began, mut stalls) = (Instant::now(), Stalls::default());
        stalls.look(began, &status);
        assert_eq!(stalls.words(&status), None);
        status.vcpus[0].throttled_ms += 500.0;
        status.vcpus[1].waited_ms = Some(105.0);
        stalls.look(began + Duration::from_secs(1), &status);
        let words = stalls.words(&status).unwrap();
        assert_eq!(words, "25 % throttled, 5 % waiting for this host");
    }
}
