// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon`: commands to a balloon device.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the flags |
//! | `device` | the connection, and its errors |
//! | `target`, `stats`, `status`, `hints`, `estimate` | one job each |
//! | [`map`] | numbers and pictures of guest memory |

pub mod args;
mod device;
mod estimate;
mod hints;
pub mod map;
mod stats;
mod status;
mod target;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use host_migrator::HintError;
use spec::page_map::PageMapError;

use args::{BalloonJob, HintsJob};

/// A job that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// Nobody listens.
    #[error("no balloon device answers at {}, which should be its --control-socket: {source}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device failed, or refused and said why.
    #[error(transparent)]
    Device(#[from] HintError),
    /// The guest cannot do it.
    #[error("{0}")]
    Guest(String),
    /// The guest did not do it in time.
    #[error("not finished after {:.1} s: {state}", .after.as_secs_f64())]
    Timeout {
        /// How long the job waited.
        after: Duration,
        /// How far it has come.
        state: String,
    },
    /// The device's map is invalid.
    #[error("the balloon device's map cannot be read: {0}")]
    Map(#[from] PageMapError),
    /// The daemon of `lacuna balloon device` failed.
    #[error("{0}")]
    Daemon(Box<dyn std::error::Error>),
    /// Files or standard output.
    #[error("cannot write {what}: {source}")]
    Write {
        /// What was to be written.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Does `job`.
///
/// # Errors
/// [`BalloonError`] if it could not be done.
pub fn run(job: BalloonJob) -> Result<(), BalloonError> {
    match job {
        BalloonJob::Device(args) => device::serve(*args),
        BalloonJob::Target(args) => target::target(&args),
        BalloonJob::Stats(args) => stats::stats(&args),
        BalloonJob::Status(args) => status::status(&args),
        BalloonJob::Hints(args) => match args.job {
            HintsJob::Start(args) => hints::start(&args),
            HintsJob::Stop(args) => hints::stop(&args),
            HintsJob::Status(args) => hints::status(&args),
        },
        BalloonJob::Estimate(args) => estimate::estimate(&args),
        BalloonJob::Map(args) => map::map(&args),
    }
}

/// Prints `json` if it was asked for, or else `text`.
fn print(as_json: bool, json: &serde_json::Value, text: &str) -> Result<(), BalloonError> {
    let mut out = io::stdout();
    if as_json {
        writeln!(out, "{json}")
    } else {
        writeln!(out, "{}", text.trim_end())
    }
    .map_err(|source| BalloonError::Write {
        what: "the answer".into(),
        source,
    })
}
