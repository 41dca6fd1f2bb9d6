// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna trace`: makes, shows and checks the record of what all parts of a migration did, in one order.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use host_migrator::report::trace::DEFAULT_SLOTS;
use serde_json::{Value, json};
use spec::trace::check::{Breach, Summary, Verdict, check};
use spec::trace::{Reader, Record, TraceError};

/// How many events are shown before and after the one that breaks the rule.
const AROUND: usize = 12;

/// Where a process records its trace.
#[derive(Clone, Debug, Default, Args)]
pub struct TraceArgs {
    /// Record what this process does in this trace, made by `lacuna trace create`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Number of this host in the trace: the same for a machine and its balloon device, different for other machines
    #[arg(long, value_name = "N", default_value_t = 0, requires = "trace")]
    pub trace_host: u16,
}

impl TraceArgs {
    /// These flags as arguments of a command line.
    pub fn to_args(&self) -> Vec<OsString> {
        let host = self.trace_host.to_string();
        self.trace.as_ref().map_or_else(Vec::new, |path| {
            let (file, number) = ("--trace".into(), "--trace-host".into());
            vec![file, path.into(), number, host.into()]
        })
    }

    /// Opens the trace; without a file, a trace that records nothing.
    ///
    /// # Errors
    /// The path and the error if it cannot be opened.
    pub fn open(&self) -> Result<host_migrator::Trace, (PathBuf, io::Error)> {
        match &self.trace {
            None => Ok(host_migrator::Trace::default()),
            Some(path) => host_migrator::Trace::open(path, self.trace_host)
                .map_err(|source| (path.clone(), source)),
        }
    }
}

/// What to do with a trace.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceJob {
    /// Make an empty trace for `--trace` of machines and balloon devices
    Create {
        /// The file; must not exist
        file: PathBuf,
        /// Number of records that the trace has room for
        #[arg(long, value_name = "N", default_value_t = DEFAULT_SLOTS)]
        slots: u64,
    },
    /// Print every record
    Show {
        /// The trace
        file: PathBuf,
        /// Print one JSON object for each record
        #[arg(long)]
        json: bool,
    },
    /// Check it against the rule, and name the first event that breaks the rule
    Check {
        /// The trace
        file: PathBuf,
        /// Print the verdict as JSON
        #[arg(long)]
        json: bool,
    },
}

/// A job that could not be done, or a trace that breaks the rule.
#[derive(Debug, thiserror::Error)]
pub enum TraceJobError {
    /// The file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// What is in it.
    #[error("{}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TraceError,
    },
    /// Standard output.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    /// The trace breaks the rule.
    #[error("the trace breaks the rule")]
    Broken,
    /// The trace is incomplete, so it proves nothing.
    #[error("the trace is incomplete: make one with more slots")]
    Incomplete,
}

/// Does `job`.
///
/// # Errors
/// [`TraceJobError`], also for a trace that breaks the rule or is incomplete.
pub fn run(job: &TraceJob) -> Result<(), TraceJobError> {
    let mut out = BufWriter::new(io::stdout().lock());
    match job {
        TraceJob::Create { file, slots } => {
            host_migrator::Trace::create(file, *slots).map_err(io_error("make", file))
        }
        TraceJob::Show { file, json } => {
            let bytes = read(file)?;
            for (index, record) in open(file, &bytes)?.records().enumerate() {
                show(&mut out, index, record, *json)?;
            }
            Ok(out.flush()?)
        }
        TraceJob::Check { file, json } => {
            let (verdict, around) = check_file(file)?;
            if *json {
                writeln!(out, "{}", verdict_as_json(&verdict))?;
            } else {
                write!(out, "{around}")?;
                writeln!(out, "{verdict}")?;
            }
            out.flush()?;
            match verdict {
                Verdict::Holds(_) => Ok(()),
                Verdict::Broken(_) => Err(TraceJobError::Broken),
                Verdict::Incomplete { .. } => Err(TraceJobError::Incomplete),
            }
        }
    }
}

/// Checks the trace at `path`. Returns with the verdict the events around the one that breaks the rule.
///
/// # Errors
/// [`TraceJobError`] if there is no trace.
pub fn check_file(path: &Path) -> Result<(Verdict, String), TraceJobError> {
    let bytes = read(path)?;
    let reader = open(path, &bytes)?;
    let verdict = check(&reader);
    let around = match &verdict {
        Verdict::Broken(breach) => around(&reader, breach)?,
        _ => String::new(),
    };
    Ok((verdict, around))
}

fn around(reader: &Reader<'_>, breach: &Breach) -> io::Result<String> {
    let first = breach.index.saturating_sub(AROUND);
    let mut lines = Vec::new();
    for (index, record) in reader
        .records()
        .enumerate()
        .skip(first)
        .take(breach.index - first + AROUND + 1)
    {
        lines.extend(if index == breach.index {
            b"-> "
        } else {
            b"   "
        });
        show(&mut lines, index, record, false)?;
    }
    Ok(String::from_utf8_lossy(&lines).into_owned())
}

fn show(
    out: &mut impl Write,
    index: usize,
    record: Option<Record>,
    as_json: bool,
) -> io::Result<()> {
    if as_json {
        let (actor, event) = record.map_or((Value::Null, Value::Null), |record| {
            (
                record.actor.to_string().into(),
                record.event.to_string().into(),
            )
        });
        return writeln!(
            out,
            "{}",
            json!({ "index": index, "actor": actor, "event": event })
        );
    }
    match record {
        Some(record) => writeln!(out, "{index:>8}  {record}"),
        None => writeln!(
            out,
            "{index:>8}  (missing: the process that took this slot has died)"
        ),
    }
}

fn verdict_as_json(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Holds(summary) => {
            json!({ "verdict": "holds", "summary": summary_as_json(summary) })
        }
        Verdict::Broken(breach) => json!({
            "verdict": "broken",
            "index": breach.index,
            "actor": breach.record.actor.to_string(),
            "event": breach.record.event.to_string(),
            "clause": breach.clause.to_string(),
            "why": breach.why,
        }),
        Verdict::Incomplete { missing } => json!({ "verdict": "incomplete", "missing": missing }),
    }
}

fn summary_as_json(summary: &Summary) -> Value {
    json!({
        "events": summary.events,
        "migrations": summary.migrations,
        "completed": summary.completed,
        "epochs": summary.epochs,
        "harvests": summary.harvests,
        "pages-hinted": summary.hinted,
        "pages-skipped": summary.skipped,
        "pages-copied": summary.copied,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TraceJobError> {
    std::fs::read(path).map_err(io_error("read", path))
}

fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<Reader<'a>, TraceJobError> {
    Reader::open(bytes).map_err(|source| TraceJobError::Trace {
        path: path.to_owned(),
        source,
    })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TraceJobError {
    move |source| TraceJobError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
