// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was measured: one JSON object, or a table.

use serde::Serialize;
use spec::PAGE_SIZE;

use super::super::record::{Sample, cpu_milliseconds, milliseconds, range};
use super::arm::Arm;
use crate::args::FileArgs;
use crate::control::DirectIoName;
use crate::figures::{aligned, median};
use crate::measured_on::Machine;
use crate::size::Size;

/// All runs of one arm.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ArmRecord {
    /// `dd-write`, `save`, `qemu-save`, `dd-read` or `restore`.
    pub(super) arm: &'static str,
    /// Threads that write or read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) channels: Option<u16>,
    /// Whether it goes without the page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) direct_io: Option<DirectIoName>,
    /// Bytes of a block of dd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) block_bytes: Option<u64>,
    /// The median rate in units of 10^6 bytes of memory a second; absent if it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) median_mb_per_s: Option<f64>,
    /// Pages a second, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) median_pages_per_s: Option<f64>,
    /// The median of the ratios of its rate to the best dd's in the same turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to_best_dd: Option<f64>,
    /// Likewise to QEMU with its best number of channels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to_best_qemu: Option<f64>,
    /// Its runs, in order.
    pub(super) samples: Vec<Sample>,
    /// Why it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) skipped: Option<String>,
}

impl ArmRecord {
    /// A record without runs.
    pub(super) fn of(arm: &Arm) -> Self {
        let (name, channels, direct_io, block_bytes) = match *arm {
            Arm::DdWrite(block) => ("dd-write", None, Some(DirectIoName::On), Some(block)),
            Arm::Save(channels, way) => ("save", Some(channels), Some(way), None),
            Arm::QemuSave(channels) => ("qemu-save", Some(channels), Some(DirectIoName::On), None),
            Arm::DdRead(block) => ("dd-read", None, Some(DirectIoName::On), Some(block)),
            Arm::Restore(channels, way) => ("restore", Some(channels), Some(way), None),
        };
        Self {
            arm: name,
            channels,
            direct_io,
            block_bytes,
            median_mb_per_s: None,
            median_pages_per_s: None,
            to_best_dd: None,
            to_best_qemu: None,
            samples: Vec::new(),
            skipped: None,
        }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        let way = match self.direct_io {
            Some(DirectIoName::On | DirectIoName::Auto) => ", direct",
            Some(DirectIoName::Off) | None => "",
        };
        match (self.channels, self.block_bytes) {
            (Some(channels), _) => format!("{}, {channels} ch{way}", self.arm),
            (None, Some(block)) => format!("{}, {}{way}", self.arm, Size(block)),
            (None, None) => self.arm.into(),
        }
    }

    /// Bytes a second of each run.
    fn rates(&self) -> impl Iterator<Item = f64> + Clone {
        self.samples.iter().map(|sample| sample.gb_per_s * 1e9)
    }
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
    /// Every how many pages one was not zero.
    pub(super) stride: u64,
    /// Turns.
    pub(super) runs: u32,
    /// The arms, in the order of their runs.
    pub(super) arms: Vec<ArmRecord>,
}

impl Report {
    /// The report of `arms`.
    pub(super) fn new(args: &FileArgs, machine: Machine, mut arms: Vec<ArmRecord>) -> Self {
        let best = |name: &str| {
            let candidates = arms.iter().filter(|arm| arm.arm == name);
            let best = candidates
                .map(|arm| (median(arm.rates()), arm.rates().collect::<Vec<_>>()))
                .max_by(|a, b| a.0.total_cmp(&b.0));
            best.map(|(_, rates)| rates).unwrap_or_default()
        };
        let (write, read, qemu) = (best("dd-write"), best("dd-read"), best("qemu-save"));
        for arm in &mut arms {
            let ratio = |to: &[f64]| {
                let turns: Vec<f64> = arm.rates().zip(to).map(|(a, b)| a / b).collect();
                (!turns.is_empty()).then(|| median(turns.into_iter()))
            };
            (arm.to_best_dd, arm.to_best_qemu) = match arm.arm {
                "save" => (ratio(&write), ratio(&qemu)),
                "qemu-save" => (ratio(&write), None),
                "restore" => (ratio(&read), None),
                _ => (None, None),
            };
            let rate = (!arm.samples.is_empty()).then(|| median(arm.rates()));
            arm.median_mb_per_s = rate.map(|rate| rate / 1e6);
            arm.median_pages_per_s = rate.map(|rate| rate / PAGE_SIZE as f64);
        }
        Self {
            machine,
            size_bytes: args.size.0,
            content: format!("{:?}", args.content).to_lowercase(),
            seed: args.seed,
            stride: args.stride,
            runs: args.runs.get(),
            arms,
        }
    }

    /// The first arm that lost memory, and how many pages.
    pub(super) fn lost(&self) -> Option<(String, u64)> {
        self.arms.iter().find_map(|arm| {
            let wrong: u64 = arm.samples.iter().map(|sample| sample.pages_wrong).sum();
            (wrong > 0).then(|| (arm.name(), wrong))
        })
    }

    /// A headline, a line for each arm, and one for each reason why an arm did not run.
    pub(super) fn table(&self) -> String {
        let every = match self.stride {
            1 => String::new(),
            stride => format!(", every {stride}th page"),
        };
        let mut text = format!(
            "{} of {} memory{every}, {} turn(s); {} processors, Linux {}, load {:.2} before\n\n",
            Size(self.size_bytes),
            self.content,
            self.runs,
            self.machine.processors,
            self.machine.kernel,
            self.machine.load_before
        );
        let ran = self.arms.iter().filter(|arm| arm.skipped.is_none());
        text += &aligned(&HEADINGS, ran.map(cells));
        for arm in &self.arms {
            if let Some(why) = &arm.skipped {
                text += &format!("\n{} did not run: {why}\n", arm.name());
            }
        }
        text
    }
}

const HEADINGS: [&str; 8] = [
    "arm", "MB/s", "range", "pages/s", "ms", "cpu ms", "/ dd", "/ QEMU",
];

fn cells(arm: &ArmRecord) -> Vec<String> {
    let or_dash = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
    let in_mb = |rate: f64| format!("{:.0}", rate / 1e6);
    vec![
        arm.name(),
        in_mb(median(arm.rates())),
        range(arm.rates(), in_mb),
        format!("{:.0}", median(arm.rates()) / PAGE_SIZE as f64),
        milliseconds(&arm.samples),
        cpu_milliseconds(&arm.samples),
        or_dash(arm.to_best_dd),
        or_dash(arm.to_best_qemu),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{BenchJob, Cli, Job};

    /// The report of arms with these rates in GB/s.
    pub fn report(arms: &[(Arm, &[f64])]) -> Report {
        let cli = Cli::parse_from(["lacuna", "bench", "file"]);
        let Job::Bench(bench) = cli.job else {
            panic!("another job");
        };
        let BenchJob::File(args) = bench.job else {
            panic!("another bench");
        };
        let record = |(arm, rates): &(Arm, &[f64])| ArmRecord {
            samples: (rates.iter())
                .map(|rate| Sample {
                    gb_per_s: *rate,
                    ms: 1000.0 / rate,
                    ..Sample::default()
                })
                .collect(),
            skipped: rates.is_empty().then(|| "it is not there".into()),
            ..ArmRecord::of(arm)
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
    fn a_save_is_compared_with_the_best_dd_turn_by_turn() {
        let report = report(&[
            (Arm::DdWrite(1 << 20), &[1.0, 1.0, 1.0]),
            (Arm::DdWrite(4 << 20), &[2.0, 4.0, 2.0]),
            (Arm::Save(2, DirectIoName::On), &[2.0, 2.0, 3.0]),
            (Arm::QemuSave(2), &[]),
            (Arm::DdRead(1 << 20), &[1.0, 1.0, 1.0]),
            (Arm::Restore(2, DirectIoName::Off), &[3.0, 2.0, 1.0]),
        ]);
        assert_eq!(report.arms[2].to_best_dd, Some(1.0));
        assert_eq!(report.arms[2].to_best_qemu, None);
        assert_eq!(report.arms[2].median_mb_per_s, Some(2000.0));
        assert_eq!(report.arms[5].to_best_dd, Some(2.0));
        let table = report.table();
        assert!(table.contains("save, 2 ch, direct"), "{table}");
        let why = "qemu-save, 2 ch, direct did not run: it is not there";
        assert!(table.contains(why), "{table}");
    }
}
