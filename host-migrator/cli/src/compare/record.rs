// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the runs of a comparison measured: a JSON object for each run, and a table and a chart of all.

use std::fmt::Write;

use host_migrator::paging::Waits;
use host_migrator::report::stats::{DowntimeSteps, ExpectedSteps};
use host_migrator::{LentMemory, PageSources, PagesBySource, RoundMaps};
use serde::{Deserialize, Serialize};

use super::course::Course;
use super::gaps::{GuestGaps, GuestReads};
use super::kill::Killed;
use crate::control::{CompressionName, HintMode};
use crate::figures::{BAR_WIDTH, aligned, bar, median};
use crate::size::Size;

/// One migration, measured and checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// `bare` or `linux`.
    pub guest: String,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Memory that the guest uses when the migration starts, its own kernel and tables included.
    pub in_use_bytes: u64,
    /// The mode: which free pages were known.
    pub hints: HintMode,
    /// The sources of free pages that were used.
    pub sources: PageSources,
    /// The seed of the guest's choices.
    pub seed: u64,
    /// Virtual processors.
    pub vcpus: u8,
    /// `tcp`, `unix`, `local` or `file`.
    pub transport: String,
    /// The memory that was lent instead of sending pages, with `local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent: Option<LentMemory>,
    /// Whether the migration was encrypted.
    #[serde(default)]
    pub tls: bool,
    /// Channels that carried the memory; with 1 everything went over one connection.
    #[serde(default)]
    pub channels: u32,
    /// Bytes that the source sent on each channel beside the control connection.
    #[serde(default)]
    pub bytes_by_channel: Vec<u64>,
    /// How pages were compressed: `none`, `lz4` or `zstd`.
    #[serde(default)]
    pub compression: CompressionName,
    /// Pages that were sent compressed. The others did not get smaller by an eighth.
    #[serde(default)]
    pub compressed_pages: u64,
    /// How many times smaller these have become; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_rate: Option<f64>,
    /// Bytes that crossed the wire, both ways, headers and all; with `file`, bytes of pages and state that were written.
    pub wire_bytes: u64,
    /// The length of the snapshot file, holes included; with `file`, as what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Bytes of the blocks that it takes on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_allocated_bytes: Option<u64>,
    /// From the request until the file was complete and on the disk, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_ms: Option<f64>,
    /// From the start of the destination's machine and device until the guest was there, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_ms: Option<f64>,
    /// From the start of the command that restores the guest until the guest ran, or was held, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_instruction_ms: Option<f64>,
    /// With `--postcopy`: from the hand-over until all memory was there, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy_ms: Option<f64>,
    /// Pages that were still to be sent at the hand-over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy_promised: Option<u64>,
    /// Of these, pages that the destination asked for, because the guest waited for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy_requests: Option<u64>,
    /// Page faults that were answered with zeros, without a byte on the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postcopy_zero_answers: Option<u64>,
    /// How often the postcopy went on after its connection had broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recoveries: Option<u64>,
    /// What became of the guest when a machine was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<Killed>,
    /// Page faults that were answered while a lazily restored guest checked its memory, or until all memory of a postcopy was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<u64>,
    /// Microseconds until half of these were answered, from the moment when they were read. (With `--postcopy`: of those that needed a page.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_p50_us: Option<f64>,
    /// The same for 99 of 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_p99_us: Option<f64>,
    /// How many of them took how long.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fault_waits: Vec<Waits>,
    /// A lazily restored guest: from the start of its processes until it had checked all of its memory, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_lazy_ms: Option<f64>,
    /// The same job after an eager restore, which is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_eager_ms: Option<f64>,
    /// Bytes of memory that are there 10 s after a lazily restored guest, which is idle, began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_resident_bytes: Option<u64>,
    /// From the request to the guest running at the destination; with `file`, as [`Record::save_ms`].
    pub total_ms: f64,
    /// Downtime: how long the guest was stopped.
    pub downtime_ms: f64,
    /// Its parts.
    #[serde(default)]
    pub downtime: DowntimeSteps,
    /// The downtime that was expected when the guest was stopped.
    pub expected_downtime_ms: f64,
    /// The parts of that; absent if the link was not measured, or the guest went before its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<ExpectedSteps>,
    /// Rounds, including the last one, with the guest stopped.
    pub rounds: u64,
    /// The same, in QEMU's word.
    #[serde(default)]
    pub iteration_count: u64,
    /// Harvests of the dirty logs while the guest ran, at the end of a round and in the middle of one.
    #[serde(default)]
    pub dirty_sync_count: u64,
    /// The most that the guest was throttled, in percent of its time.
    #[serde(default)]
    pub throttle_max_percent: u8,
    /// How evenly the guest ran, in its own view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_gap_ms: Option<GuestGaps>,
    /// How long its memory took to read, in its own view. Only the bare guest knows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_read_us: Option<GuestReads>,
    /// What the machine has decided so that the migration ends, in words.
    #[serde(default)]
    pub decisions: Vec<String>,
    /// Pages sent with their content, each sending counted.
    pub pages_sent: u64,
    /// Pages found to be zero.
    pub pages_zero: u64,
    /// Pages left out because of a hint.
    pub pages_hinted: u64,
    /// Pages left out by each source. A page that is left out twice counts twice.
    pub pages_by_source: PagesBySource,
    /// Pages that were hinted only after they had been sent.
    pub pages_hinted_too_late: u64,
    /// The same, by who hinted.
    pub pages_hinted_too_late_by_source: PagesBySource,
    /// Pages that were left out and that the guest then wrote, so that they were to be sent again; by the source for
    /// which they were left out.
    pub pages_back_dirty_by_source: PagesBySource,
    /// Pages sent again because the guest wrote them. Every repetition counts.
    pub pages_resent: u64,
    /// Pages that the guest wrote in a round before the round copied them, so that they need not be sent again.
    pub pages_written_before_copy: u64,
    /// Pages of memory that were compared after the migration: all.
    pub pages_compared: u64,
    /// Pages that were wrong. Anything but 0 is a bug.
    pub pages_wrong: u64,
    /// Pages that may differ: free, and zero at the destination.
    pub pages_given_up: u64,
    /// Stamps that the guest checked at the destination.
    pub guest_checks: u64,
    /// Stamps that were wrong there.
    pub guest_wrong: u64,
    /// How many events the checker found to keep the rule; `None` if no trace was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_events: Option<u64>,
    /// Hinted pages of each round.
    pub pages_hinted_by_round: Vec<u64>,
    /// The migration's course, for the report of a suite.
    #[serde(skip)]
    pub course: Course,
    /// Where in memory each round did what, for the pictures.
    #[serde(skip)]
    pub maps: Option<RoundMaps>,
}

impl Record {
    /// Bytes on the wire for each byte in use. 1.0 is the least for a guest that writes nothing.
    pub fn wire_per_in_use(&self) -> f64 {
        self.wire_bytes as f64 / self.in_use_bytes.max(1) as f64
    }

    /// Whether no page and no stamp was wrong.
    pub fn is_exact(&self) -> bool {
        let of_killed = self.killed.as_ref().map_or(0, |killed| killed.pages_wrong);
        self.pages_wrong + of_killed == 0 && self.guest_wrong == 0 && self.pages_compared > 0
    }
}

const HEADINGS: [&str; 11] = [
    "hints",
    "total ms",
    "down ms",
    "on the wire",
    "/ in use",
    "rounds",
    "sent",
    "zero",
    "hinted",
    "too late",
    "wrong/compared",
];

/// The records as a table with a line for each.
pub fn table(records: &[Record]) -> String {
    aligned(&HEADINGS, records.iter().map(cells))
}

const FILE_HEADINGS: [&str; 10] = [
    "hints",
    "save ms",
    "restore ms",
    "runs after ms",
    "faults",
    "job / eager",
    "idle / in use",
    "length",
    "on the disk",
    "/ in use",
];

/// The snapshot files of the records as a table; empty if there are none.
pub fn files(records: &[Record]) -> String {
    let lines = records.iter().filter_map(|record| {
        let allocated = record.file_allocated_bytes?;
        let to_in_use = |bytes| bytes as f64 / record.in_use_bytes.max(1) as f64;
        let or_dash = |ratio: Option<f64>| ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
        Some(vec![
            record.hints.to_string(),
            format!("{:.0}", record.save_ms?),
            format!("{:.0}", record.restore_ms?),
            (record.first_instruction_ms).map_or("-".into(), |after| format!("{after:.0}")),
            (record.faults).map_or("-".into(), |faults| faults.to_string()),
            or_dash(
                (record.job_lazy_ms.zip(record.job_eager_ms)).map(|(lazy, eager)| lazy / eager),
            ),
            or_dash(record.idle_resident_bytes.map(to_in_use)),
            Size(record.file_bytes?).to_string(),
            Size(allocated).to_string(),
            or_dash(Some(to_in_use(allocated))),
        ])
    });
    let lines: Vec<_> = lines.collect();
    match lines.is_empty() {
        true => String::new(),
        false => aligned(&FILE_HEADINGS, lines.into_iter()) + "\n",
    }
}

const SOURCE_HEADINGS: [&str; 5] = [
    "hints",
    "source",
    "pages removed",
    "hinted too late",
    "came back dirty",
];

/// A table of what each source saved in each mode: medians of the mode's runs. Sources that saved nothing are left
/// out.
pub fn sources(records: &[Record]) -> String {
    let mut rows = Vec::new();
    for mode in modes(records) {
        let medians = |pages: fn(&Record) -> PagesBySource| {
            let of_mode = || records.iter().filter(|record| record.hints == mode);
            let counts = |source: usize| of_mode().map(move |r| pages(r).named()[source].1 as f64);
            std::array::from_fn::<u64, 7, _>(|source| median(counts(source)) as u64)
        };
        let removed = medians(|record| record.pages_by_source);
        let too_late = medians(|record| record.pages_hinted_too_late_by_source);
        let back = medians(|record| record.pages_back_dirty_by_source);
        for (index, (name, _)) in PagesBySource::default().named().into_iter().enumerate() {
            if removed[index] + too_late[index] + back[index] == 0 {
                continue;
            }
            let is_hint = ["driver", "agent", "both"].contains(&name);
            rows.push(vec![
                mode.to_string(),
                name.to_owned(),
                removed[index].to_string(),
                if is_hint {
                    too_late[index].to_string()
                } else {
                    "-".into()
                },
                back[index].to_string(),
            ]);
        }
    }
    aligned(&SOURCE_HEADINGS, rows.into_iter())
}

fn cells(record: &Record) -> Vec<String> {
    vec![
        record.hints.to_string(),
        format!("{:.0}", record.total_ms),
        format!("{:.1}", record.downtime_ms),
        Size(record.wire_bytes).to_string(),
        format!("{:.2}", record.wire_per_in_use()),
        record.rounds.to_string(),
        record.pages_sent.to_string(),
        record.pages_zero.to_string(),
        record.pages_hinted.to_string(),
        record.pages_hinted_too_late.to_string(),
        format!("{}/{}", record.pages_wrong, record.pages_compared),
    ]
}

/// Bars for the median bytes and times of each mode, for a terminal.
pub fn chart(records: &[Record]) -> String {
    let modes = modes(records);
    let mut text = String::new();
    let in_use = median(records.iter().map(|record| record.in_use_bytes as f64));
    let show_bytes = |bytes: f64| {
        format!(
            "{}  ({:.2} x in use)",
            Size(bytes as u64),
            bytes / in_use.max(1.0)
        )
    };
    let show_ms = |ms: f64| format!("{ms:.0} ms");
    let mut bars = |title: &str, value: &dyn Fn(&Record) -> f64, show: &dyn Fn(f64) -> String| {
        let medians: Vec<f64> = modes
            .iter()
            .map(|mode| median(records.iter().filter(|r| r.hints == *mode).map(value)))
            .collect();
        let longest = medians
            .iter()
            .copied()
            .fold(0.0, f64::max)
            .max(f64::MIN_POSITIVE);
        // Writing to a String does not fail.
        let _ = writeln!(text, "{title}");
        for (mode, value) in modes.iter().zip(medians) {
            let eighths = (value / longest * (BAR_WIDTH * 8) as f64).round() as usize;
            let _ = writeln!(
                text,
                "  {:<6}{} {}",
                mode.to_string(),
                bar(eighths),
                show(value)
            );
        }
    };
    bars(
        "bytes on the wire",
        &|record| record.wire_bytes as f64,
        &show_bytes,
    );
    bars("total time", &|record| record.total_ms, &show_ms);
    bars("downtime", &|record| record.downtime_ms, &|ms| {
        format!("{ms:.1} ms")
    });
    text
}

/// The modes of `records`, in order of first appearance.
fn modes(records: &[Record]) -> Vec<HintMode> {
    records.iter().fold(Vec::new(), |mut modes, record| {
        if !modes.contains(&record.hints) {
            modes.push(record.hints);
        }
        modes
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run of a bare guest with `wire_bytes` on the wire.
    pub fn record(hints: HintMode, wire_bytes: u64) -> Record {
        serde_json::from_value(serde_json::json!({
            "guest": "bare", "memory_bytes": 2u64 << 30, "in_use_bytes": 1 << 28, "hints": hints,
            "seed": 1, "vcpus": 1, "transport": "tcp", "wire_bytes": wire_bytes, "total_ms": 10.0,
            "downtime_ms": 1.5, "expected_downtime_ms": 1.0, "rounds": 3, "pages_sent": 5,
            "pages_zero": 6, "pages_hinted": 7, "pages_hinted_too_late": 0,
            "sources": ["driver", "zero"],
            "pages_by_source": { "driver": 7, "zero": 6 },
            "pages_hinted_too_late_by_source": {},
            "pages_back_dirty_by_source": { "driver": 2 }, "pages_resent": 0, "pages_written_before_copy": 0,
            "pages_compared": 9, "pages_wrong": 0, "pages_given_up": 7, "guest_checks": 1,
            "guest_wrong": 0, "pages_hinted_by_round": [7, 0, 0]
        }))
        .unwrap()
    }

    #[test]
    fn the_bar_of_the_larger_value_is_longer() {
        let chart = chart(&[
            record(HintMode::Off, 1 << 31),
            record(HintMode::On, 1 << 28),
        ]);
        let blocks = |mode: &str| {
            let line = chart
                .lines()
                .find(|line| line.trim_start().starts_with(mode))
                .unwrap();
            line.matches('█').count()
        };
        assert_eq!(blocks("off"), BAR_WIDTH);
        assert_eq!(blocks("on"), BAR_WIDTH / 8);
        assert!(chart.contains("1.00 x in use"), "{chart}");
    }

    #[test]
    fn a_run_over_a_file_has_a_line_of_its_own_and_others_have_none() {
        let wire = record(HintMode::Off, 1);
        let file = Record {
            file_bytes: Some(2 << 30),
            file_allocated_bytes: Some(1 << 28),
            save_ms: Some(12.0),
            restore_ms: Some(7.0),
            first_instruction_ms: Some(5.0),
            ..record(HintMode::On, 1)
        };
        assert_eq!(files(std::slice::from_ref(&wire)), "");
        let table = files(&[wire, file]);
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains("1.000"), "{table}");
    }

    #[test]
    fn every_record_has_a_line_of_the_table() {
        let table = table(&[
            record(HintMode::Off, 1 << 31),
            record(HintMode::On, 1 << 28),
        ]);
        assert_eq!(table.lines().count(), 4);
        assert!(table.contains("0/9"), "{table}");
    }

    #[test]
    fn every_source_that_brought_something_has_a_line() {
        let table = sources(&[record(HintMode::Off, 1), record(HintMode::On, 1)]);
        let words: Vec<Vec<&str>> = (table.lines().skip(2))
            .map(|line| line.split_whitespace().collect())
            .collect();
        let lines = |mode| {
            [
                [mode, "driver", "7", "0", "2"],
                [mode, "zero", "6", "-", "0"],
            ]
        };
        assert_eq!(words, [lines("off"), lines("on")].concat(), "{table}");
    }

    #[test]
    fn a_run_that_compared_nothing_is_not_exact() {
        let mut record = record(HintMode::On, 1);
        assert!(record.is_exact());
        record.pages_compared = 0;
        assert!(!record.is_exact());
    }
}
