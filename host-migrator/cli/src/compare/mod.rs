// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna compare`: what do free page hints save on this guest?
//!
//! Source, destination and a balloon device for each are processes of their own. The guest fills memory,
//! frees most of it and keeps writing the rest; it is migrated in each mode; every page is compared and the
//! guest checks itself at the destination.

mod course;
mod early;
mod file;
mod gaps;
mod kill;
mod lane;
mod lazy;
mod line;
mod oracle;
mod parts;
pub mod picture;
mod plan;
mod record;
mod run;
mod steps;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitStatus;

pub use course::Course;
pub use gaps::{GuestGaps, GuestReads, noticed_by};
pub use kill::{KillEnd, Killed};
pub(crate) use lane::is_needed as needs_lane;
pub use line::Line;
pub(crate) use oracle::compare as compare_memory;
pub use oracle::{OracleError, PageStates, Verdict, Wrong, WrongPage};
pub use parts::{AgentPort, Host, Part};
pub use plan::RunPlan;
pub use record::{Record, chart, files, sources, table};
pub use run::{ask_about_lent, ask_oracle, memory_of, run_once};

use crate::args::CompareArgs;
use crate::certificates::CertificateError;
use crate::control::{ClientError, CompressionName};
use crate::nested;
use crate::terminal;
use crate::trace::TraceJobError;

/// A comparison that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Certificates could not be made.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// A process could not be started.
    #[error("cannot start the {name}: {source}")]
    Start {
        /// Which.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A process ended before its time.
    #[error("the {name} ended with {status}; the end of its log:\n{said}")]
    Died {
        /// Which.
        name: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        said: String,
    },
    /// Something took too long.
    #[error("gave up waiting for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
    },
    /// A machine refused a command or went away.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// The guest itself failed.
    #[error("the guest failed: {0}")]
    Guest(String),
    /// The migration failed.
    #[error("the migration failed: {0}")]
    Migration(String),
    /// The agent is a program for Linux.
    #[error("the bare guest has no agent: choose other --sources, or --guest linux")]
    NoAgent,
    /// Flags that mean nothing without a file, or with one.
    #[error("{0}")]
    Flags(&'static str),
    /// There is no such compression.
    #[error("{0}")]
    Compression(String),
    /// The memory could not be compared.
    #[error(transparent)]
    Oracle(#[from] OracleError),
    /// The trace of a run cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceJobError),
    /// The trace of a run shows that the rule was broken, or is incomplete.
    #[error("the trace of a run does not prove that the rule was kept: {0}")]
    Rule(String),
    /// The nested lane, where the guest cannot run here directly.
    #[error(transparent)]
    Nested(#[from] nested::NestedError),
    /// The comparison failed in the nested lane; it has said why.
    #[error("the comparison in the nested lane ended with status {status}")]
    InLane {
        /// Its exit status.
        status: i32,
    },
    /// Files and folders.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A run lost memory.
    #[error("{wrong} of {runs} runs lost memory: this is a bug")]
    Lost {
        /// Runs with wrong pages.
        wrong: usize,
        /// Runs.
        runs: usize,
    },
}

/// Runs the comparison and prints what it measured.
///
/// # Errors
/// [`CompareError`]; [`CompareError::Lost`] if any page was wrong.
pub fn compare(args: &CompareArgs) -> Result<(), CompareError> {
    if lane::is_needed(args.guest.kind) {
        return lane::compare(args);
    }
    let plans = RunPlan::all(args)?;
    let progress = terminal::progress_bar(plans.len(), args.json);
    let mut records = Vec::with_capacity(plans.len());
    for (number, plan) in (1..).zip(&plans) {
        if nested::inside() {
            // On the serial line of an emulated machine a progress bar would only fill the log.
            eprintln!("run {number} of {}: {plan}", plans.len());
        }
        progress.set_message(plan.to_string());
        let record = run_once(plan, &progress)?;
        if args.json {
            print_line(&serde_json::to_string(&record).unwrap_or_default())?;
        }
        records.push(record);
        progress.inc(1);
    }
    progress.finish_and_clear();
    if !args.json {
        let rounds = picture::terminal::draw(&records, terminal::width(), terminal::has_colours());
        print_line(&format!(
            "{}\n\n{}\n{}{}{}{}\n{}\n{rounds}",
            headline(args),
            table(&records),
            files(&records),
            kill::lines(&records),
            gaps::tables(&records),
            sources(&records),
            chart(&records)
        ))?;
    }
    if let Some(path) = &args.picture {
        let svg = picture::svg::draw(&records);
        if nested::inside() {
            lane::send_picture(&svg)?;
        } else {
            write_picture(path, &svg)?;
        }
    }
    let wrong = records.iter().filter(|record| !record.is_exact()).count();
    if wrong > 0 {
        Err(CompareError::Lost {
            wrong,
            runs: records.len(),
        })
    } else {
        Ok(())
    }
}

fn headline(args: &CompareArgs) -> String {
    let workload = &args.workload;
    let fragmented = match workload.fragment.0 {
        0 => String::new(),
        _ => format!("{} fragmented, ", workload.fragment),
    };
    let compressed = match args.migration.multifd_compression {
        CompressionName::None => String::new(),
        name => format!("; pages compressed with {}", plan::name_of(name)),
    };
    format!(
        "{:?} guest with {} of memory: {} in use, {} written and freed, {fragmented}{} a second rewritten{compressed}",
        args.guest.kind, args.guest.memory, workload.in_use, workload.freed, workload.dirty_rate
    )
}

fn write_picture(path: &Path, svg: &str) -> Result<(), CompareError> {
    fs::write(path, svg).map_err(|source| CompareError::Io {
        what: "cannot write the picture",
        source,
    })
}

/// A closed pipe (`| head`) is an error to report, not a panic.
fn print_line(text: &str) -> Result<(), CompareError> {
    writeln!(io::stdout(), "{text}").map_err(|source| CompareError::Io {
        what: "cannot write the results",
        source,
    })
}
