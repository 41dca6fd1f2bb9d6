// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna compare --suite`: scenarios, each run several times with each mode of hints; medians and spread, and a report.
//!
//! | module | what it is |
//! |---|---|
//! | `definition` | a suite as a TOML file: scenarios and their flags |
//! | `record` | what the runs measured, as JSON |
//! | `summary` | the same as a table for a terminal |
//! | `report` | the same as one HTML page with curves |

mod definition;
mod record;
mod report;
mod summary;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub use definition::{Scenario, Suite, SuiteError};
pub use record::{Run, ScenarioRecord, SuiteRecord};

use crate::args::CompareArgs;
use crate::compare::{CompareError, RunPlan, needs_lane, run_once};
use crate::measured_on::Machine;
use crate::terminal;

/// A suite that could not be run or shown.
#[derive(Debug, thiserror::Error)]
pub enum SuiteFailed {
    /// The suite.
    #[error(transparent)]
    Definition(#[from] SuiteError),
    /// A run.
    #[error("scenario {scenario}: {source}")]
    Run {
        /// Of which scenario.
        scenario: String,
        /// Why.
        source: CompareError,
    },
    /// The guest does not run here directly.
    #[error(
        "scenario {scenario}: this machine cannot run the guest itself, and a suite is not run in an emulated machine"
    )]
    NotHere {
        /// Of which scenario.
        scenario: String,
    },
    /// A record that was made before.
    #[error("cannot use the record {}: {why}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Runs lost memory.
    #[error("{wrong} of {runs} runs lost memory: this is a bug")]
    Lost {
        /// Runs with wrong pages.
        wrong: usize,
        /// Runs.
        runs: usize,
    },
}

/// Runs the suite `name` with the flags of the command line, `args`, or takes a record; prints a summary and writes what was asked for.
///
/// # Errors
/// [`SuiteFailed`]; [`SuiteFailed::Lost`] if any page was wrong.
pub fn compare(args: &CompareArgs) -> Result<(), SuiteFailed> {
    let record = match (&args.suite.suite, &args.suite.from_record) {
        (Some(name), _) => run(name, args)?,
        (None, Some(path)) => SuiteRecord::read(path)?,
        (None, None) => return Ok(()),
    };
    let text = match args.json {
        true => serde_json::to_string(&record).unwrap_or_default(),
        false => summary::table(&record),
    };
    writeln!(io::stdout(), "{}", text.trim_end()).map_err(to("standard output".as_ref()))?;
    if let Some(folder) = &args.suite.record {
        let folder = record.folder(folder);
        fs::create_dir_all(&folder).map_err(to(&folder))?;
        let path = folder.join(format!("{}.json", record.suite));
        record.write(&path).map_err(to(&path))?;
        eprintln!("lacuna: wrote {}", path.display());
    }
    if let Some(path) = &args.suite.report {
        fs::write(path, report::page(&record)).map_err(to(path))?;
    }
    let runs = || record.scenarios.iter().flat_map(|it| &it.runs);
    let wrong = runs().filter(|run| !run.record.is_exact()).count();
    match wrong {
        0 => Ok(()),
        wrong => Err(SuiteFailed::Lost {
            wrong,
            runs: runs().count(),
        }),
    }
}

fn to(path: &Path) -> impl FnOnce(io::Error) -> SuiteFailed {
    let path = path.to_owned();
    move |source| SuiteFailed::Write { path, source }
}

/// Runs all scenarios of the suite `name`.
fn run(name: &Path, args: &CompareArgs) -> Result<SuiteRecord, SuiteFailed> {
    let suite = Suite::load(name, &flags_of_compare(std::env::args_os()))?;
    let runs = args.runs.unwrap_or(suite.runs);
    let mut plans = Vec::new();
    for scenario in &suite.scenarios {
        let args = CompareArgs {
            runs: Some(runs),
            // Maps of memory are for pictures, and reports have none.
            json: true,
            ..scenario.args.clone()
        };
        if needs_lane(args.guest.kind) {
            let scenario = scenario.name.clone();
            return Err(SuiteFailed::NotHere { scenario });
        }
        let failed = failed_in(scenario);
        plans.push((scenario, RunPlan::all(&args).map_err(failed)?));
    }
    let mut record = SuiteRecord {
        suite: suite.name.clone(),
        date: today(),
        program: format!(
            "lacuna {}{}",
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) {
                ", checks on"
            } else {
                ""
            }
        ),
        machine: Machine::now(),
        scenarios: Vec::new(),
    };
    let count = plans.iter().map(|(_, plans)| plans.len()).sum();
    let progress = terminal::progress_bar(count, args.json);
    for (scenario, plans) in plans {
        let mut runs = Vec::new();
        for plan in plans {
            let name = &scenario.name;
            progress.set_message(format!("{name}: {plan}"));
            log::info!("{name}: {plan}");
            let run = run_once(&plan, &progress).map_err(failed_in(scenario))?;
            runs.push(Run::from(run));
            progress.inc(1);
        }
        record.scenarios.push(ScenarioRecord {
            name: scenario.name.clone(),
            about: scenario.about.clone(),
            runs,
        });
    }
    progress.finish_and_clear();
    Ok(record)
}

fn failed_in(scenario: &Scenario) -> impl FnOnce(CompareError) -> SuiteFailed + use<> {
    let scenario = scenario.name.clone();
    move |source| SuiteFailed::Run { scenario, source }
}

/// The flags behind `compare` on a command line: they count in each scenario.
fn flags_of_compare(line: impl Iterator<Item = OsString>) -> Vec<OsString> {
    line.skip_while(|word| word != "compare").skip(1).collect()
}

fn today() -> String {
    let now = time::OffsetDateTime::now_utc().date();
    format!(
        "{}-{:02}-{:02}",
        now.year(),
        u8::from(now.month()),
        now.day()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_behind_the_job_are_those_of_each_scenario() {
        let line = ["lacuna", "compare", "--suite", "quick", "--memory=1G"];
        let flags = flags_of_compare(line.iter().map(OsString::from));
        assert_eq!(flags, ["--suite", "quick", "--memory=1G"]);
    }

    #[test]
    fn a_day_is_written_with_all_its_digits() {
        assert_eq!(today().len(), "2026-11-26".len());
    }
}
