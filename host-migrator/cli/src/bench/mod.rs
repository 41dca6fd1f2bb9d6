// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench`: how fast is it on this machine, and how fast could it be?
//!
//! | module | what it is |
//! |---|---|
//! | `transport` | `lacuna bench transport`: runs the arms in turns |
//! | `file` | `lacuna bench file`: saves and restores |
//! | `postcopy` | `lacuna bench postcopy`: waits for pages that are still to come |
//! | `arm` | what an arm is, and the arms of the command line |
//! | `content`, `memory` | the memory that is moved, and the memory that it is moved into |
//! | `bare_loop`, `engine`, `iperf`, `qemu` | the arms |
//! | `link` | a network of a given rate |
//! | `record`, `picture`, `show` | what was measured, as JSON, as a table and as a picture |

mod arm;
mod bare_loop;
mod content;
mod engine;
mod file;
mod iperf;
mod link;
mod memory;
mod picture;
mod postcopy;
mod qemu;
mod record;
mod show;
mod transport;

use std::io;

use host_migrator::paging::PagingError;
use host_migrator::wire::{TlsFileError, TransportError};
use host_migrator::{MigrationError, RamError, ReceiveError, SinkError, SnapshotError};

use crate::args::BenchJob;
use crate::certificates::CertificateError;
use crate::compare::OracleError;
use crate::qmp::QmpError;
use crate::size::Size;

/// A measurement that could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Source and destination do not fit the machine's memory.
    #[error(
        "source and destination need {needed} of memory, and this machine has {available} to spare: take a smaller --size"
    )]
    NoMemory {
        /// What is needed.
        needed: Size,
        /// What there is.
        available: Size,
    },
    /// There are fewer pages than connections.
    #[error("{size} of memory are fewer pages than {channels} connections: take a larger --size")]
    FewPages {
        /// The memory.
        size: Size,
        /// The connections.
        channels: u16,
    },
    /// Memory cannot be made, read or written.
    #[error("memory: {0}")]
    Ram(#[from] RamError),
    /// The memory could not be compared.
    #[error(transparent)]
    Oracle(#[from] OracleError),
    /// There is no connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Certificates could not be made.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// Certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFileError),
    /// The source's side of a migration failed.
    #[error("the migration failed at the source: {0}")]
    Source(#[from] MigrationError),
    /// The destination's side of a migration failed.
    #[error("the migration failed at the destination: {0}")]
    Destination(#[from] ReceiveError),
    /// A snapshot cannot be restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Another program failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said, or what it should have said.
        said: String,
    },
    /// Page faults cannot be handled.
    #[error(transparent)]
    Paging(#[from] PagingError),
    /// The destination has no more to say.
    #[error("the destination ended before {what}")]
    Ended {
        /// What was waited for.
        what: &'static str,
    },
    /// QEMU does not do what it is asked.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Files, sockets and threads.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Memory was lost.
    #[error("{pages} pages at the destination of {arm} are wrong: this is a bug")]
    Lost {
        /// The first arm that lost memory.
        arm: String,
        /// How many pages.
        pages: u64,
    },
}

impl BenchError {
    /// For `map_err` of `what` was tried.
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Measures, and prints what was measured.
///
/// # Errors
/// [`BenchError`].
pub fn run(job: &BenchJob) -> Result<(), BenchError> {
    match job {
        BenchJob::Transport(args) => transport::run(args),
        BenchJob::File(args) => file::run(args),
        BenchJob::Postcopy(args) => postcopy::run(args),
    }
}
