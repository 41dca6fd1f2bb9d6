// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metrics of a machine and its migration, for a Prometheus server. A scrape reads the status that the machine has anyway.

use std::fmt;
use std::sync::Weak;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use spec::PAGE_SIZE;

use super::Status;
use super::process::Process;
use crate::jobs::name_of;

/// The metrics of `process`. There are none when it has ended.
pub(super) fn registry(process: Weak<Process>) -> Registry {
    let mut registry = Registry::with_prefix("lacuna");
    registry.register_collector(Box::new(OfMachine(process)));
    registry
}

#[derive(Debug)]
struct OfMachine(Weak<Process>);

type Metric<T> = (&'static str, &'static str, fn(&Status) -> T);

const COUNTERS: &[Metric<u64>] = &[
    (
        "migration_transferred_bytes",
        "Bytes that the migration has sent",
        |s| s.migration.ram.transferred,
    ),
    ("migration_iterations", "Iterations begun", |s| {
        s.migration.ram.iteration_count
    }),
    (
        "migration_dirty_syncs",
        "Harvests of the dirty logs while the guest ran",
        |s| s.migration.ram.dirty_sync_count,
    ),
    (
        "migration_hinted_bytes",
        "Bytes of pages that were not sent because of hints",
        |s| s.migration.hints.skipped * PAGE_SIZE,
    ),
    (
        "migration_zero_pages",
        "Pages of zeros that were found",
        |s| s.migration.ram.duplicate,
    ),
];

const GAUGES: &[Metric<f64>] = &[
    (
        "migration_remaining_bytes",
        "Bytes of pages still to be sent",
        |s| s.migration.ram.remaining as f64,
    ),
    (
        "migration_total_seconds",
        "Time since the migration began, until its end",
        |s| s.migration.total_time as f64 / 1000.0,
    ),
    (
        "migration_downtime_seconds",
        "How long the guest was stopped; 0 before it was",
        |s| s.migration.downtime as f64 / 1000.0,
    ),
    (
        "migration_expected_downtime_seconds",
        "How long the guest would be stopped now; NaN before the link was measured",
        |s| {
            s.migration
                .expected_downtime
                .map_or(f64::NAN, |ms| ms as f64 / 1000.0)
        },
    ),
    (
        "migration_dirty_bytes_per_second",
        "What the guest dirties",
        |s| (s.migration.ram.dirty_pages_rate * PAGE_SIZE) as f64,
    ),
    (
        "migration_throttle_ratio",
        "How much of its vCPUs' time the guest does not get, 0 to 1",
        |s| f64::from(s.migration.cpu_throttle_percentage) / 100.0,
    ),
    (
        "guest_longest_gap_seconds",
        "The longest time in which a vCPU of the bare guest did not run, in its own view",
        |s| {
            let gaps = s.vcpus.iter().filter_map(|vcpu| vcpu.gap_ms);
            gaps.map(|gaps| gaps.max / 1000.0).fold(0.0, f64::max)
        },
    ),
];

impl Collector for OfMachine {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(process) = self.0.upgrade() else {
            return Ok(());
        };
        let status = process.status();
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&value(&status), None)?;
        }
        for (name, help, value) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_gauge(&value(&status))?;
        }
        let states = [
            (
                "machine_state",
                "Where the machine is in its life",
                name_of(status.machine),
            ),
            (
                "migration_state",
                "Where its migration stands",
                name_of(status.migration.status),
            ),
        ];
        for (name, help, state) in states {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            let labels = [("state", &*state)];
            metric.encode_family(&labels)?.encode_gauge(&1u64)?;
        }
        Ok(())
    }
}
