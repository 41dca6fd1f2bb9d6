// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was measured: one JSON object, or a table.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::BenchError;
use super::content::Content;
use super::memory::Destination;
use crate::args::{ArmName, TransportArgs};
use crate::figures::{aligned, median};
use crate::measured_on::Machine;

/// One run of one arm.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Sample {
    /// From the start to the last byte in its place, in milliseconds. Connections and memory were made before.
    pub(super) ms: f64,
    /// Bytes of memory that were moved.
    pub(super) bytes: u64,
    /// Bytes of memory a second, in units of 10^9.
    pub(super) gb_per_s: f64,
    /// Processor time of both sides together, in milliseconds, where both are in this process. Other work on the machine
    /// changes it less than the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_ms: Option<f64>,
    /// Bytes on the wire, both ways, headers and all, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wire_bytes: Option<u64>,
    /// The length of the file, for a save into one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file_bytes: Option<u64>,
    /// How long it took before to give the destination's memory its pages, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) populate_ms: Option<f64>,
    /// Pages of the destination that were compared with the source's: all, or none if the arm has no memory there.
    pub(super) pages_compared: u64,
    /// Those that were wrong. Anything but 0 is a bug.
    pub(super) pages_wrong: u64,
}

impl Sample {
    /// `content` was moved in the time that `took` says; `destination` is compared with it.
    ///
    /// # Errors
    /// [`BenchError`] if memory cannot be compared.
    pub(super) fn new(
        took: Took,
        content: &Content,
        destination: Option<&Destination>,
    ) -> Result<Self, BenchError> {
        let sample = Self {
            cpu_ms: took.cpu.map(|time| time.as_secs_f64() * 1000.0),
            ..Self::of_no_memory(took.time, content.pages().bytes())
        };
        let Some(destination) = destination else {
            return Ok(sample);
        };
        let verdict = destination.verdict(content)?;
        Ok(Self {
            populate_ms: destination.populated_ms(),
            pages_compared: verdict.pages_compared,
            pages_wrong: verdict.pages_wrong,
            ..sample
        })
    }

    /// `bytes` were moved in `took`, and went nowhere.
    pub(super) fn of_no_memory(took: Duration, bytes: u64) -> Self {
        let seconds = took.as_secs_f64().max(f64::MIN_POSITIVE);
        Self {
            ms: seconds * 1000.0,
            bytes,
            gb_per_s: bytes as f64 / seconds / 1e9,
            ..Self::default()
        }
    }
}

/// A clock that was started.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    cpu: Duration,
}

/// What an arm took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// The time.
    pub(super) time: Duration,
    /// The processor time of this process, if both sides are in it.
    pub(super) cpu: Option<Duration>,
}

impl Clock {
    /// Starts now.
    pub(super) fn start() -> Self {
        Self {
            began: Instant::now(),
            cpu: cpu_time(),
        }
    }

    /// The time since then.
    pub(super) fn took(&self) -> Took {
        Took {
            time: self.began.elapsed(),
            cpu: Some(cpu_time().saturating_sub(self.cpu)),
        }
    }
}

/// Processor time of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // The kernel gives no negative time.
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    )
}

/// All runs of one arm.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ArmRecord {
    /// The arm.
    #[serde(serialize_with = "as_name")]
    pub(super) arm: ArmName,
    /// The median rate; absent if it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) median_gb_per_s: Option<f64>,
    /// Its runs, in order.
    pub(super) samples: Vec<Sample>,
    /// Why it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) skipped: Option<String>,
}

/// The rate of an arm, divided by that of another in the same turn.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Ratio {
    /// The arm.
    #[serde(serialize_with = "as_name")]
    pub(super) arm: ArmName,
    /// What it is compared with.
    #[serde(serialize_with = "as_name")]
    pub(super) baseline: ArmName,
    /// The median of all turns.
    pub(super) median: f64,
    /// The ratio of each turn.
    pub(super) turns: Vec<f64>,
}

/// A whole bench.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// Where.
    pub(super) machine: Machine,
    /// Bytes of memory.
    pub(super) size_bytes: u64,
    /// What was in it: `random`, `compressible` or `mixed`.
    pub(super) content: String,
    /// The seed of the content.
    pub(super) seed: u64,
    /// Turns.
    pub(super) runs: u32,
    /// Connections of each arm.
    pub(super) channels: u16,
    /// Millions of bits a second that the link lets through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) link_mbit: Option<u32>,
    /// The arms, in the order of their runs.
    pub(super) arms: Vec<ArmRecord>,
    /// Every arm that has a baseline among the others.
    pub(super) ratios: Vec<Ratio>,
}

impl Report {
    /// The report of `arms`.
    pub(super) fn new(args: &TransportArgs, machine: Machine, mut arms: Vec<ArmRecord>) -> Self {
        for arm in &mut arms {
            let rates = arm.samples.iter().map(|sample| sample.gb_per_s);
            arm.median_gb_per_s = (!arm.samples.is_empty()).then(|| median(rates));
        }
        Self {
            machine,
            size_bytes: args.size.0,
            content: format!("{:?}", args.content).to_lowercase(),
            seed: args.seed,
            runs: args.runs.get(),
            channels: args.channels,
            link_mbit: args.link_mbit,
            ratios: ratios(&arms),
            arms,
        }
    }

    /// The first arm that lost memory, and how many pages.
    pub(super) fn lost(&self) -> Option<(ArmName, u64)> {
        self.arms.iter().find_map(|arm| {
            let wrong: u64 = arm.samples.iter().map(|sample| sample.pages_wrong).sum();
            (wrong > 0).then_some((arm.arm, wrong))
        })
    }

    /// A line for each arm, and one for each reason why an arm did not run.
    pub(super) fn table(&self) -> String {
        let ran = self.arms.iter().filter(|arm| arm.skipped.is_none());
        let mut text = aligned(&HEADINGS, ran.map(|arm| self.cells(arm)));
        for arm in &self.arms {
            if let Some(why) = &arm.skipped {
                text += &format!("\n{} did not run: {why}\n", arm.arm);
            }
        }
        text
    }

    fn cells(&self, arm: &ArmRecord) -> Vec<String> {
        let rates = || arm.samples.iter().map(|sample| sample.gb_per_s);
        let in_gb = |rate: f64| format!("{rate:.2}");
        let sum = |of: fn(&Sample) -> u64| arm.samples.iter().map(of).sum::<u64>();
        let compared = match sum(|sample| sample.pages_compared) {
            0 => "-".into(),
            pages => format!("{}/{pages}", sum(|sample| sample.pages_wrong)),
        };
        let against: Vec<String> = (self.ratios.iter())
            .filter(|ratio| ratio.arm == arm.arm)
            .map(|ratio| format!("{:.2} of {}", ratio.median, ratio.baseline))
            .collect();
        let smaller = (arm.samples.iter())
            .filter_map(|sample| Some(sample.bytes as f64 / sample.wire_bytes? as f64));
        vec![
            arm.arm.to_string(),
            in_gb(median(rates())),
            range(rates(), in_gb),
            milliseconds(&arm.samples),
            cpu_milliseconds(&arm.samples),
            match smaller.clone().next() {
                Some(_) => format!("{:.2}", median(smaller)),
                None => "-".into(),
            },
            compared,
            against.join(", "),
        ]
    }
}

/// The lowest and the highest of `rates`.
pub(super) fn range(
    rates: impl Iterator<Item = f64> + Clone,
    write: impl Fn(f64) -> String,
) -> String {
    let lowest = rates.clone().fold(f64::INFINITY, f64::min);
    format!("{}-{}", write(lowest), write(rates.fold(0.0, f64::max)))
}

/// The median of how long the runs took.
pub(super) fn milliseconds(samples: &[Sample]) -> String {
    format!("{:.0}", median(samples.iter().map(|sample| sample.ms)))
}

/// The median of their processor time, if it is known.
pub(super) fn cpu_milliseconds(samples: &[Sample]) -> String {
    let cpu = samples.iter().filter_map(|sample| sample.cpu_ms);
    match cpu.clone().next() {
        Some(_) => format!("{:.0}", median(cpu)),
        None => "-".into(),
    }
}

const HEADINGS: [&str; 8] = [
    "arm",
    "GB/s",
    "range",
    "ms",
    "cpu ms",
    "/ wire",
    "wrong/compared",
    "ratio",
];

/// Every arm against its baselines, turn by turn.
fn ratios(arms: &[ArmRecord]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for arm in arms {
        for baseline in arm.arm.baselines() {
            let Some(other) = arms.iter().find(|other| other.arm == *baseline) else {
                continue;
            };
            let turns: Vec<f64> = (arm.samples.iter().zip(&other.samples))
                .map(|(ours, theirs)| ours.gb_per_s / theirs.gb_per_s)
                .collect();
            if !turns.is_empty() {
                ratios.push(Ratio {
                    arm: arm.arm,
                    baseline: *baseline,
                    median: median(turns.iter().copied()),
                    turns,
                });
            }
        }
    }
    ratios
}

fn as_name<S: serde::Serializer>(arm: &ArmName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(arm)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{BenchJob, Cli, Job};

    /// The report of arms with these rates.
    pub fn report(arms: &[(ArmName, &[f64])]) -> Report {
        let cli = Cli::parse_from(["lacuna", "bench", "transport"]);
        let Job::Bench(bench) = cli.job else {
            panic!("another job");
        };
        let BenchJob::Transport(args) = bench.job else {
            panic!("another bench");
        };
        let record = |(arm, rates): &(ArmName, &[f64])| ArmRecord {
            arm: *arm,
            median_gb_per_s: None,
            samples: (rates.iter())
                .map(|rate| Sample {
                    ms: 1000.0 / rate,
                    bytes: 1_000_000_000,
                    gb_per_s: *rate,
                    pages_compared: 10,
                    ..Sample::default()
                })
                .collect(),
            skipped: rates.is_empty().then(|| "it is not there".into()),
        };
        let machine = Machine {
            processors: 2,
            kernel: "6.18".into(),
            load_before: 0.5,
            ..Machine::default()
        };
        Report::new(&args, machine, arms.iter().map(record).collect())
    }

    #[test]
    fn a_ratio_is_taken_turn_by_turn() {
        let report = report(&[
            (ArmName::BareFresh, &[1.0, 2.0, 4.0]),
            (ArmName::LacunaFresh, &[0.5, 2.0, 1.0]),
        ]);
        assert_eq!(report.ratios.len(), 1);
        assert_eq!(report.ratios[0].turns, [0.5, 1.0, 0.25]);
        assert_eq!(report.ratios[0].median, 0.5);
        assert_eq!(report.arms[0].median_gb_per_s, Some(2.0));
        assert!(report.table().contains("0.50 of bare-fresh"));
    }

    #[test]
    fn an_arm_that_did_not_run_says_why_and_is_no_baseline() {
        let report = report(&[(ArmName::Iperf3, &[]), (ArmName::LacunaPopulated, &[2.0])]);
        assert!(report.ratios.is_empty());
        let table = report.table();
        assert!(
            table.contains("iperf3 did not run: it is not there"),
            "{table}"
        );
    }

    #[test]
    fn a_wrong_page_of_any_run_is_a_loss() {
        let mut report = report(&[
            (ArmName::BareFresh, &[1.0, 1.0]),
            (ArmName::LacunaFresh, &[1.0, 1.0]),
        ]);
        assert_eq!(report.lost(), None);
        report.arms[1].samples[1].pages_wrong = 3;
        assert_eq!(report.lost(), Some((ArmName::LacunaFresh, 3)));
        assert!(report.table().contains("3/20"));
    }
}
