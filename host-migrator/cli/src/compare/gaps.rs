// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's own view of a run: the gaps in which its vCPUs did not run, before the migration, during it and after it.

use std::fmt::Write;

use reference_vmm::guest_gaps::{self, Noticed};
use serde::{Deserialize, Serialize};
use spec::gaps::{Gaps, ReadTimes};

use super::CompareError;
use super::oracle::OracleError;
use super::parts::Host;
use super::record::Record;
use super::run::memory_of;
use crate::figures::aligned;
use crate::gaps::{GapFigures, ReadFigures};

/// What the guest saw of its migration. Of a Linux guest only the longest gaps are known, in seconds that were over when it was stopped, and
/// none of them at the destination. Of the bare guest: `max`, `p50`, `p99` and `p999` of its vCPUs' gaps in milliseconds, from the request until it
/// was stopped; and the same at other times.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct GuestGaps {
    /// While it was migrated and ran. How long it was then stopped is the downtime, which it cannot measure here: it is held
    /// at the destination until its memory was compared.
    #[serde(flatten)]
    pub during: GapFigures,
    /// Before the migration, since it was ready.
    pub without_migration: GapFigures,
    /// At the destination, from its first beat on.
    pub after: GapFigures,
    /// The longest gap of each vCPU while it was migrated and ran.
    pub max_by_vcpu: Vec<f64>,
}

impl GuestGaps {
    /// Of a Linux guest that has reported these longest gaps, in microseconds, before and during its migration.
    pub(super) fn of_longest(before: u64, during: u64) -> Self {
        let longest = |micros: u64| GapFigures {
            max: micros as f64 / 1000.0,
            ..GapFigures::default()
        };
        Self {
            during: longest(during),
            without_migration: longest(before),
            ..Self::default()
        }
    }
}

/// How long the bare guest's vCPUs waited for words of its memory: `reads`, `max`, `p50`, `p99` and `p999` in microseconds, in the same
/// phases as [`GuestGaps`].
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct GuestReads {
    /// While it was migrated and ran.
    #[serde(flatten)]
    pub during: ReadFigures,
    /// Before the migration, since it was ready.
    pub without_migration: ReadFigures,
    /// At the destination.
    pub after: ReadFigures,
}

/// What each vCPU had noticed at the moments between the phases of a run.
#[derive(Debug)]
pub(super) struct Moments {
    pub(super) ready: Vec<Noticed>,
    pub(super) asked: Vec<Noticed>,
    pub(super) stopped: Vec<Noticed>,
    pub(super) checked: Vec<Noticed>,
}

impl Moments {
    /// The gaps.
    pub(super) fn gaps(&self) -> GuestGaps {
        let all = |gaps: &mut dyn Iterator<Item = Gaps>| {
            let mut sum = Gaps::default();
            gaps.for_each(|gaps| sum.merge(&gaps));
            GapFigures::of(&sum)
        };
        let during = || gaps_between(&self.asked, &self.stopped);
        let longest = |gaps: Gaps| GapFigures::of(&gaps).max;
        let after = gaps_between(&self.stopped, &self.checked);
        GuestGaps {
            during: all(&mut during()),
            without_migration: all(&mut gaps_between(&self.ready, &self.asked)),
            // The longest is that in which the guest was held.
            after: all(&mut after.map(|it| it.without_greatest())),
            max_by_vcpu: during().map(longest).collect(),
        }
    }

    /// The reads.
    pub(super) fn reads(&self) -> GuestReads {
        let between = |earlier: &[Noticed], later: &[Noticed]| {
            let mut sum = ReadTimes::default();
            for (later, earlier) in later.iter().zip(earlier) {
                sum.merge(&later.reads.since(&earlier.reads));
            }
            ReadFigures::of(&sum)
        };
        GuestReads {
            during: between(&self.asked, &self.stopped),
            without_migration: between(&self.ready, &self.asked),
            after: between(&self.stopped, &self.checked),
        }
    }
}

fn gaps_between<'a>(
    earlier: &'a [Noticed],
    later: &'a [Noticed],
) -> impl Iterator<Item = Gaps> + 'a {
    later
        .iter()
        .zip(earlier)
        .map(|(later, earlier)| later.gaps.since(&earlier.gaps))
}

/// What each vCPU of the bare guest on `host` has noticed so far.
///
/// # Errors
/// [`CompareError`] if its memory cannot be read.
pub fn noticed_by(host: &Host, vcpus: u8) -> Result<Vec<Noticed>, CompareError> {
    let (ram, _) = memory_of(host)?;
    Ok(guest_gaps::read(&ram, vcpus).map_err(OracleError::from)?)
}

const HEADINGS: [&str; 8] = [
    "hints", "gaps ms", "beats", "p50", "p99", "p99.9", "longest", "downtime",
];
const READ_HEADINGS: [&str; 7] = [
    "hints", "read us", "reads", "p50", "p99", "p99.9", "longest",
];

/// The gaps and the reads of the records as two tables; empty if no guest has counted them.
pub fn tables(records: &[Record]) -> String {
    gap_table(records) + &read_table(records)
}

fn read_table(records: &[Record]) -> String {
    let mut rows = Vec::new();
    for record in records {
        let Some(reads) = &record.guest_read_us else {
            continue;
        };
        let phases = [
            ("before", &reads.without_migration),
            ("during", &reads.during),
            ("after", &reads.after),
        ];
        for (phase, figures) in phases {
            let mut row = vec![
                record.hints.to_string(),
                phase.into(),
                figures.reads.to_string(),
            ];
            let of_phase = [figures.p50, figures.p99, figures.p999, figures.max];
            row.extend(of_phase.map(|us| format!("{us:.2}")));
            rows.push(row);
        }
    }
    match rows.is_empty() {
        true => String::new(),
        false => format!("{}\n", aligned(&READ_HEADINGS, rows.into_iter())),
    }
}

fn gap_table(records: &[Record]) -> String {
    let mut rows = Vec::new();
    for record in records {
        let Some(gaps) = &record.guest_gap_ms else {
            continue;
        };
        let phases = [
            ("before", &gaps.without_migration),
            ("during", &gaps.during),
            ("after", &gaps.after),
        ];
        for (phase, figures) in phases {
            let mut row = vec![
                record.hints.to_string(),
                phase.into(),
                figures.beats.to_string(),
            ];
            let of_phase = [figures.p50, figures.p99, figures.p999, figures.max];
            row.extend(of_phase.map(|ms| format!("{ms:.1}")));
            row.push(match phase {
                "during" => format!("{:.1}", record.downtime_ms),
                _ => String::new(),
            });
            rows.push(row);
        }
    }
    let mut text = String::new();
    if !rows.is_empty() {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", aligned(&HEADINGS, rows.into_iter()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gaps of so many microseconds, and reads of as many nanoseconds.
    fn of(numbers: &[u64]) -> Noticed {
        let mut noticed = Noticed::default();
        for number in numbers {
            noticed.gaps.add(*number);
            noticed.reads.add(*number);
        }
        noticed
    }

    #[test]
    fn each_phase_has_its_own_gaps_and_the_time_held_at_the_destination_is_none() {
        let moments = Moments {
            ready: vec![of(&[9_000_000]), of(&[])],
            asked: vec![of(&[9_000_000, 1000]), of(&[1000, 2000])],
            stopped: vec![of(&[9_000_000, 1000, 30_000]), of(&[1000, 2000, 4000])],
            checked: vec![
                of(&[9_000_000, 1000, 30_000, 5_000_000, 8000]),
                of(&[1000, 2000, 4000, 5_000_000]),
            ],
        };
        let (gaps, reads) = (moments.gaps(), moments.reads());
        let near = |ms: f64, of: f64| assert!((of..of * 1.07).contains(&ms), "{ms}, not {of}");
        near(gaps.without_migration.max, 2.0);
        near(gaps.during.max, 30.0);
        assert_eq!(gaps.during.beats, 2);
        near(gaps.after.max, 8.0);
        assert_eq!(gaps.after.beats, 1);
        near(gaps.max_by_vcpu[0], 30.0);
        near(gaps.max_by_vcpu[1], 4.0);
        let counts = [reads.without_migration, reads.during, reads.after].map(|it| it.reads);
        assert_eq!(counts, [3, 2, 3]);
        assert!((30.0..34.0).contains(&reads.during.max), "{reads:?}");
    }
}
