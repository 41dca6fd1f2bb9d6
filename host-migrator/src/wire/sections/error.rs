// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong with sections.

use std::io;

use spec::stream::{SectionKind, StreamError};

/// A stream that has broken off or is invalid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// The connection failed.
    #[error("connection to the other side: {0}")]
    Io(#[from] io::Error),
    /// The bytes are not a migration stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A section was lost, repeated or reordered.
    #[error("section {found} arrived where section {expected} was due")]
    Sequence {
        /// The expected number.
        expected: u32,
        /// The number that arrived.
        found: u32,
    },
    /// The payload's checksum is wrong.
    #[error("the checksum of section {sequence} ({kind:?}) is wrong: the stream is corrupt")]
    Checksum {
        /// The section's kind.
        kind: SectionKind,
        /// Its number.
        sequence: u32,
    },
    /// A section of a kind that is not allowed here.
    #[error("a {found:?} section arrived where {expected} was due")]
    Unexpected {
        /// What arrived.
        found: SectionKind,
        /// What was expected.
        expected: &'static str,
    },
    /// The other side ended the migration.
    #[error("the other side gave up: {0}")]
    Aborted(String),
}
