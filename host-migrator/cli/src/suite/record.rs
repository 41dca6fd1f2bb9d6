// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the runs of a suite measured: one JSON object, from which reports are made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SuiteFailed;
use crate::compare::{Course, Record};
use crate::control::HintMode;
use crate::figures::median;
use crate::measured_on::Machine;

/// A suite that was run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SuiteRecord {
    /// The suite's name.
    pub suite: String,
    /// The day, as in 2026-11-26.
    pub date: String,
    /// The version of this program, and how it was built.
    pub program: String,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// The scenarios.
    pub scenarios: Vec<ScenarioRecord>,
}

/// The runs of a scenario.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ScenarioRecord {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub about: String,
    /// The runs.
    pub runs: Vec<Run>,
}

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// What it measured.
    #[serde(flatten)]
    pub record: Record,
    /// Its course.
    pub course: Course,
}

impl From<Record> for Run {
    fn from(mut record: Record) -> Self {
        let course = std::mem::take(&mut record.course);
        Self { record, course }
    }
}

/// The runs of a scenario with one mode of hints.
#[derive(Clone, Debug)]
pub(super) struct Arm<'a> {
    pub(super) mode: HintMode,
    pub(super) runs: Vec<&'a Run>,
}

/// A median, and the least and the most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
}

impl ScenarioRecord {
    /// The arms, in order of first appearance.
    pub(super) fn arms(&self) -> Vec<Arm<'_>> {
        let mut arms: Vec<Arm<'_>> = Vec::new();
        for run in &self.runs {
            let mode = run.record.hints;
            match arms.iter_mut().find(|arm| arm.mode == mode) {
                Some(arm) => arm.runs.push(run),
                None => arms.push(Arm {
                    mode,
                    runs: vec![run],
                }),
            }
        }
        arms
    }

    /// Whether its guests have counted the gaps in which they did not run.
    pub(super) fn has_gaps(&self) -> bool {
        let mut runs = self.runs.iter();
        runs.any(|run| run.record.guest_gap_ms.is_some())
    }

    /// How long waits for missing pages were, in microseconds: powers of two from the shortest to the longest, none where no run had any.
    pub(super) fn waits(&self) -> Vec<u64> {
        let waits = self.runs.iter().flat_map(|run| &run.record.fault_waits);
        let below = waits
            .map(|some| some.below_us)
            .filter(|below| below.is_power_of_two());
        let (Some(least), Some(most)) = (below.clone().min(), below.max()) else {
            return Vec::new();
        };
        (least.trailing_zeros()..=most.trailing_zeros())
            .map(|power| 1 << power)
            .collect()
    }
}

impl<'a> Arm<'a> {
    /// The spread of a figure of its runs.
    pub(super) fn spread(&self, figure: impl Fn(&Record) -> f64) -> Spread {
        let values = || self.runs.iter().map(|run| figure(&run.record));
        Spread {
            least: values().fold(f64::INFINITY, f64::min),
            median: median(values()),
            most: values().fold(0.0, f64::max),
        }
    }

    /// The run whose time is the median, or the next longer one.
    pub(super) fn typical(&self) -> Option<&'a Run> {
        let mut runs = self.runs.clone();
        runs.sort_by(|one, other| one.record.total_ms.total_cmp(&other.record.total_ms));
        runs.get(runs.len() / 2).copied()
    }
}

impl SuiteRecord {
    /// Where it belongs in `folder`: in a folder for the day and the machine.
    pub(super) fn folder(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}", self.date, self.machine.slug()))
    }

    /// Reads a record.
    pub(super) fn read(path: &Path) -> Result<Self, SuiteFailed> {
        let failed = |why: String| SuiteFailed::Record {
            path: path.to_owned(),
            why,
        };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
    }

    /// Writes it to `path`.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        // A line for each run, so that a record can be read and compared as text.
        let text = serde_json::to_string(self)?.replace("{\"guest\":", "\n{\"guest\":");
        fs::write(path, text + "\n")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use host_migrator::{MigrationState, MigrationStatus};

    /// A run of this mode that took `ms` milliseconds.
    pub fn run(hints: HintMode, ms: u64) -> Run {
        let record = serde_json::json!({
            "guest": "bare", "memory_bytes": 1u64 << 29, "in_use_bytes": 1 << 26, "hints": hints,
            "seed": 1, "vcpus": 1, "transport": "tcp", "wire_bytes": ms << 20, "total_ms": ms,
            "downtime_ms": 1.5, "expected_downtime_ms": 1.0, "rounds": 3, "pages_sent": 5,
            "pages_zero": 6, "pages_hinted": 7, "pages_hinted_too_late": 0, "sources": ["driver", "zero"],
            "pages_by_source": { "driver": 7, "zero": 6 }, "pages_hinted_too_late_by_source": {},
            "pages_back_dirty_by_source": { "driver": 2 }, "pages_resent": 0, "pages_written_before_copy": 0,
            "pages_compared": 9, "pages_wrong": 0, "pages_given_up": 7, "guest_checks": 1,
            "guest_wrong": 0, "pages_hinted_by_round": [7, 0, 0]
        });
        let mut course = Course::default();
        let mut status = MigrationStatus::default();
        for step in 0..=10 {
            status.total_time = ms * step / 10;
            status.ram.remaining = (10 - step) << 20;
            status.ram.transferred = step << 20;
            course.look(&status);
        }
        status.status = MigrationState::Completed;
        course.look(&status);
        Run {
            record: serde_json::from_value(record).unwrap(),
            course,
        }
    }

    /// A suite of one scenario of this name, with three runs of each of two modes.
    pub fn suite(name: &str) -> SuiteRecord {
        let times = [(HintMode::Off, [30, 10, 20]), (HintMode::On, [3, 2, 1])];
        let runs = times
            .iter()
            .flat_map(|(mode, times)| times.map(|ms| run(*mode, ms)));
        SuiteRecord {
            suite: "test".into(),
            date: "2026-11-26".into(),
            scenarios: vec![ScenarioRecord {
                name: name.into(),
                about: "About it.".into(),
                runs: runs.collect(),
            }],
            ..SuiteRecord::default()
        }
    }

    #[test]
    fn arms_have_medians_and_spread_and_a_typical_run() {
        let record = suite("one");
        let arms = record.scenarios[0].arms();
        assert_eq!(arms.len(), 2);
        let off = arms[0].spread(|record| record.total_ms);
        assert_eq!((off.least, off.median, off.most), (10.0, 20.0, 30.0));
        assert_eq!(arms[1].typical().unwrap().record.total_ms, 2.0);
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_an_invalid_one_is_refused_with_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suite.json");
        let record = suite("one");
        record.write(&path).unwrap();
        let read = SuiteRecord::read(&path).unwrap();
        assert_eq!(read.scenarios[0].runs.len(), 6);
        let (before, after) = (&record.scenarios[0].runs[0], &read.scenarios[0].runs[0]);
        assert_eq!(before.course.remaining, after.course.remaining);
        assert_eq!(before.record.total_ms, after.record.total_ms);
        fs::write(&path, "{\"suite\": 7}").unwrap();
        let error = SuiteRecord::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 1 column 11"), "{error}");
        assert!(error.contains("suite.json"), "{error}");
    }
}
