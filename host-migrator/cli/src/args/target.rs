// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a guest goes to or comes from: another machine, or a snapshot file.

use std::fmt;
use std::str::FromStr;

use host_migrator::SnapshotTarget;
use host_migrator::snapshot::TargetError;
use host_migrator::wire::Address;

/// Where a guest goes to or comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Another machine.
    Address(Address),
    /// A snapshot file.
    File(SnapshotTarget),
}

/// The snapshot at `file`: PATH, file:PATH or file:PATH,offset=N.
///
/// # Errors
/// [`TargetError`] if it is meant to be a target of a save, and is not.
pub fn snapshot_at(file: &str) -> Result<SnapshotTarget, TargetError> {
    if SnapshotTarget::is_meant(file) {
        return file.parse();
    }
    Ok(SnapshotTarget {
        path: file.into(),
        offset: None,
    })
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if SnapshotTarget::is_meant(text) {
            return text
                .parse()
                .map(Self::File)
                .map_err(|error| format!("{error}"));
        }
        text.parse()
            .map(Self::Address)
            .map_err(|error| format!("{error}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::File(file) => file.fmt(f),
        }
    }
}
