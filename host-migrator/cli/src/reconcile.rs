// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna reconcile`: the two halves that a broken migration has left become one snapshot.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::thread;
use std::time::Instant;

use host_migrator::snapshot::{
    HalfFile, ReconcileError, Reconciled, TargetError, open_storage, reconcile as make_whole,
};
use host_migrator::{DirectIo, SnapshotError};
use serde::Serialize;
use spec::{PAGE_SIZE, PageRange};

use crate::args::{ReconcileArgs, snapshot_at};
use crate::size::Size;
use crate::terminal::bytes_bar;

/// Runs of missing pages that are told in text.
const MOST_TOLD: usize = 20;

/// Halves of which no snapshot was made.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The name of a file.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A half cannot be read.
    #[error(transparent)]
    Half(#[from] SnapshotError),
    /// The halves make no whole.
    #[error("{error}{}", told(.error))]
    Reconcile {
        /// Why.
        #[from]
        error: ReconcileError,
    },
    /// Standard output.
    #[error("cannot write the answer: {0}")]
    Output(#[source] io::Error),
}

/// What was made, or what is missing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", untagged)]
enum Answer<'a> {
    #[serde(rename_all = "kebab-case")]
    Made {
        output: &'a str,
        pages: u64,
        from_source: u64,
        from_destination: u64,
        ms: f64,
    },
    #[serde(rename_all = "kebab-case")]
    Missing {
        missing_pages: u64,
        missing: Vec<Missing>,
    },
}

/// A run of missing pages.
#[derive(Debug, Serialize)]
struct Missing {
    gpa: u64,
    length: u64,
}

/// `lacuna reconcile`
///
/// # Errors
/// [`JobError`]. A file that had the output's name is as it was then.
pub fn reconcile(args: &ReconcileArgs) -> Result<(), JobError> {
    let began = Instant::now();
    let output = snapshot_at(&args.output)?;
    let halves: Vec<HalfFile> = (args.halves.iter())
        .map(|half| Ok::<_, JobError>(HalfFile::open(&snapshot_at(half)?)?))
        .collect::<Result<_, _>>()?;
    let pages: u64 = halves.iter().map(|half| half.file().commit().pages).sum();
    let bar = bytes_bar(pages * PAGE_SIZE, args.json);
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let made = make_whole(
        &halves,
        || open_storage(&output, DirectIo::Auto),
        threads,
        &|pages| bar.inc(pages * PAGE_SIZE),
    );
    bar.finish_and_clear();
    if let (true, Err(ReconcileError::Missing { pages, runs })) = (args.json, &made) {
        print_json(&Answer::Missing {
            missing_pages: *pages,
            missing: runs.iter().map(missing).collect(),
        })?;
    }
    let Reconciled {
        saved,
        from_destination,
        from_source,
        ..
    } = made?;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    if args.json {
        return print_json(&Answer::Made {
            output: &args.output,
            pages: saved.pages,
            from_source,
            from_destination,
            ms,
        });
    }
    print(&format!(
        "made {} of {} in use: {} from the destination's half, {} from the source's, {:.1} s",
        args.output,
        Size(saved.pages * PAGE_SIZE),
        Size(from_destination * PAGE_SIZE),
        Size(from_source * PAGE_SIZE),
        ms / 1000.0
    ))
}

fn missing(run: &PageRange) -> Missing {
    Missing {
        gpa: run.first() * PAGE_SIZE,
        length: run.bytes(),
    }
}

/// The missing pages, as lines after the error.
fn told(error: &ReconcileError) -> String {
    let ReconcileError::Missing { runs, .. } = error else {
        return String::new();
    };
    let mut lines: Vec<String> = (runs.iter().take(MOST_TOLD))
        .map(|run| {
            let (first, end) = (run.first() * PAGE_SIZE, run.end() * PAGE_SIZE);
            format!("\n  {first:#x} to {end:#x}")
        })
        .collect();
    if runs.len() > MOST_TOLD {
        lines.push("\n  and more: --json has them".into());
    }
    lines.concat()
}

fn print_json(answer: &Answer<'_>) -> Result<(), JobError> {
    print(&serde_json::to_string_pretty(answer).unwrap_or_default())
}

fn print(text: &str) -> Result<(), JobError> {
    writeln!(io::stdout(), "{text}").map_err(JobError::Output)
}
