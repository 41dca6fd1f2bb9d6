// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty logs: how the engine learns which pages of guest memory were written, and by whom.

use std::fmt;
use std::io;

use spec::trace::event::Writer;

use crate::memory::bitmap::MigrationBitmap;

/// Whose writes a log records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogSource {
    /// The vCPUs' (and the kernel's on their behalf).
    Kvm,
    /// A vhost-user back end's.
    VhostUser,
    /// The VMM's own.
    OwnWrites,
}

impl From<LogSource> for Writer {
    fn from(source: LogSource) -> Self {
        match source {
            LogSource::Kvm => Self::Vcpus,
            LogSource::VhostUser => Self::BackEnd,
            LogSource::OwnWrites => Self::Vmm,
        }
    }
}

impl fmt::Display for LogSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::VhostUser => "vhost-user back end",
            Self::OwnWrites => "VMM",
        })
    }
}

/// A dirty log that failed. A migration cannot go on after it.
#[derive(Debug, thiserror::Error)]
#[error("dirty log of the {log}: cannot {action}: {source}")]
pub struct DirtyLogError {
    /// Which log.
    pub log: LogSource,
    /// What was tried.
    pub action: &'static str,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// A log of written guest pages.
pub trait DirtyLog: Send {
    /// Whose writes it records.
    fn source(&self) -> LogSource;

    /// Starts logging and arms every page: old bits are gone, and a write after the return of this call
    /// is in the next [`DirtyLog::harvest`]. Calling it again starts over.
    ///
    /// # Errors
    /// [`DirtyLogError`] if the log cannot be started.
    fn start(&mut self) -> Result<(), DirtyLogError>;

    /// Takes all bits out of the log (read, then cleared, everywhere) and ORs them into `bitmap`. A write
    /// during the call is in this harvest or in the next one. Returns the number of bits taken.
    ///
    /// # Errors
    /// [`DirtyLogError`]; bits may then be lost, so the migration must fail.
    fn harvest(&mut self, bitmap: &MigrationBitmap) -> Result<u64, DirtyLogError>;

    /// Stops logging. Does nothing if the log does not run.
    ///
    /// # Errors
    /// [`DirtyLogError`] if the log cannot be stopped.
    fn stop(&mut self) -> Result<(), DirtyLogError>;
}
