// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a client, or nobody, can be served.

use std::io;

use host_migrator::SnapshotError;
use host_migrator::paging::PagingError;
use host_migrator::snapshot::TargetError;
use spec_sockets::ListenError;

/// Nobody can be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The name of the snapshot.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The file is neither a snapshot nor a memory image.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The memory file.
    #[error("cannot {action} the memory file: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A memory file without whole pages.
    #[error("the memory file has {0} bytes: not a whole number of pages, or none")]
    Length(u64),
    /// The socket.
    #[error("cannot listen: {0}")]
    Listen(#[from] ListenError),
    /// Connections or threads.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// One client cannot be served any more. The others are.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// It says nothing.
    #[error("it has not sent its regions within 10 seconds")]
    Slow,
    /// It has hung up.
    #[error("it has hung up before it had sent its regions")]
    Gone,
    /// Not an array of regions.
    #[error("it has not sent an array of regions: {0}")]
    Json(String),
    /// The regions cannot be.
    #[error("its regions do not fit: {0}")]
    Regions(String),
    /// No descriptor, or several.
    #[error("it has not sent exactly one descriptor with its regions")]
    Descriptors,
    /// Something else than a userfaultfd.
    #[error("its descriptor is not a userfaultfd")]
    NoUserfaultfd,
    /// The connection.
    #[error("its connection: {0}")]
    Socket(#[source] io::Error),
    /// Its page faults.
    #[error(transparent)]
    Paging(#[from] PagingError),
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}
