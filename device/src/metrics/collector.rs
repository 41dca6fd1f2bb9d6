// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The metrics of all devices, each with the label `device`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use spec::balloon::stat;

use super::sample::{Observed, QUANTILES, Quantiles, Sample, Watched};

/// The metrics of `devices`.
pub fn registry(devices: Vec<Observed>) -> Registry {
    let mut registry = Registry::with_prefix("balloon");
    let devices = devices.into_iter().map(Watched::new).collect();
    registry.register_collector(Box::new(Devices(devices)));
    registry
}

#[derive(Debug)]
struct Devices(Vec<Watched>);

type Counter = (&'static str, &'static str, fn(&Sample) -> u64);

const COUNTERS: &[Counter] = &[
    ("front_ends", "Front ends that have connected", |s| {
        s.front_ends
    }),
    (
        "failed_front_ends",
        "Front ends that the device disconnected",
        |s| s.failed_front_ends,
    ),
    (
        "inflated_pages",
        "Pages (4 KiB) that the guest put into the balloon",
        |s| s.counters.inflated_pages,
    ),
    (
        "deflated_pages",
        "Pages (4 KiB) that the guest took out",
        |s| s.counters.deflated_pages,
    ),
    (
        "reported_pages",
        "Pages (4 KiB) that the guest reported as free",
        |s| s.counters.reported_pages,
    ),
    (
        "discarded_bytes",
        "Bytes that were given back to the host",
        |s| s.counters.discarded_bytes,
    ),
    ("discards", "Calls that gave memory back to the host", |s| {
        s.counters.discards
    }),
    (
        "failed_discards",
        "Calls to give memory back that failed",
        |s| s.counters.failed_discards,
    ),
    (
        "pages_out_of_range",
        "Pages or ranges outside guest memory",
        |s| s.counters.out_of_range,
    ),
    (
        "bad_buffers",
        "Invalid buffers or rings of the guest",
        |s| s.counters.bad_buffers,
    ),
    ("statistics", "Statistics that the guest sent", |s| {
        s.counters.statistics
    }),
    ("epochs", "Epochs of hints that were opened", |s| {
        s.hinting.epochs
    }),
    ("hints", "Hints of the guest's driver that were used", |s| {
        s.hinting.hints
    }),
    (
        "hinted_pages",
        "Pages (4 KiB) that hints marked as free",
        |s| s.hinting.pages,
    ),
    (
        "agent_pages",
        "Pages (4 KiB) that the guest's agent marked as free",
        |s| s.hinting.agent_pages,
    ),
    (
        "stale_hints",
        "Hints that came outside the epoch they were for",
        |s| s.hinting.stale,
    ),
    (
        "rejected_hints",
        "Hints without a whole page, or outside guest memory",
        |s| s.hinting.out_of_range + s.hinting.partial + s.hinting.zero_length,
    ),
    ("bad_commands", "Invalid commands on the hint queue", |s| {
        s.hinting.bad_commands
    }),
    (
        "broken_chains",
        "Chains or rings of hints without an end",
        |s| s.hinting.broken_chains,
    ),
];

const GAUGES: &[Counter] = &[
    (
        "front_end_connected",
        "Whether a front end is connected",
        |s| s.connected.into(),
    ),
    (
        "answers",
        "Whether the device answered in time: if not, the other values are those of its last answer",
        |s| s.answers.into(),
    ),
    ("running", "Whether any queue runs", |s| s.running.into()),
    ("memory_pages", "Pages (4 KiB) of guest memory", |s| {
        s.memory_pages
    }),
    (
        "wanted_pages",
        "Pages (4 KiB) that are wanted in the balloon",
        |s| s.wanted_pages,
    ),
    (
        "target_pages",
        "Pages (4 KiB) that the guest is asked for",
        |s| s.target_pages,
    ),
    (
        "actual_pages",
        "Pages (4 KiB) that the guest says are in the balloon",
        |s| s.actual_pages,
    ),
    (
        "ballooned_pages",
        "Pages (4 KiB) that the device saw go into the balloon",
        |s| s.ballooned_pages,
    ),
];

type Summary = (&'static str, &'static str, fn(&Sample) -> &Quantiles);

const SUMMARIES: &[Summary] = &[
    (
        "hint_age",
        "From the opening of an epoch to a hint in the map",
        |s| &s.ages,
    ),
    (
        "hint_batch",
        "For all hints that one look at the queue finds",
        |s| &s.batches,
    ),
];

impl Collector for Devices {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let samples: Vec<Sample> = self.0.iter().map(Watched::look).collect();
        for (name, help, value) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for sample in &samples {
                let labels = [("device", &*sample.name)];
                let value = value(sample);
                let mut family = metric.encode_family(&labels)?;
                family.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
            }
        }
        for (name, help, value) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for sample in &samples {
                let labels = [("device", &*sample.name)];
                metric
                    .encode_family(&labels)?
                    .encode_gauge(&value(sample))?;
            }
        }
        for (name, help, times) in SUMMARIES {
            let unit = Some(&Unit::Seconds);
            let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for sample in &samples {
                for (quantile, time) in QUANTILES.iter().zip(times(sample).0) {
                    let quantile = quantile.to_string();
                    let labels = [("device", &*sample.name), ("quantile", &*quantile)];
                    metric.encode_family(&labels)?.encode_gauge(&time)?;
                }
            }
        }
        let help = "The guest's memory statistics by tag: bytes or counts";
        let kind = MetricType::Gauge;
        let metric = encoder.encode_descriptor("guest_statistic", help, None, kind)?;
        guest_statistics(metric, &samples)?;
        let (unit, help) = (Some(&Unit::Seconds), "Since the guest last said that");
        let mut metric = encoder.encode_descriptor("guest_statistics_age", help, unit, kind)?;
        for sample in &samples {
            if let Some(arrived) = sample.statistics_arrived {
                let labels = [("device", &*sample.name)];
                let age = arrived.elapsed().as_secs_f64();
                metric.encode_family(&labels)?.encode_gauge(&age)?;
            }
        }
        Ok(())
    }
}

/// A guest may invent tags. Tags without a name are left out, because they could fill the server's memory.
fn guest_statistics(mut metric: MetricEncoder<'_>, samples: &[Sample]) -> fmt::Result {
    for sample in samples {
        for &(tag, value) in &sample.statistics {
            if let Some(tag) = stat::name(tag) {
                let labels = [("device", &*sample.name), ("tag", tag)];
                metric.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
    }
    Ok(())
}
