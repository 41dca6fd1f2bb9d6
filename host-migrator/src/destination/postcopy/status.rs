// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is said of a guest whose memory is still coming.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::paging::{PagingError, PagingStatus};

/// How far a postcopy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PostcopyPhase {
    /// Memory is coming.
    #[default]
    Active,
    /// The connection has broken. Who needs a missing page waits.
    Paused,
    /// The source is waited for, to go on.
    Recovering,
    /// All memory is here.
    Completed,
    /// The guest is in this side's half, which was saved: it never runs here again.
    Saved,
}

/// The status of a postcopy at the destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PostcopyStatus {
    /// How far it is.
    pub phase: PostcopyPhase,
    /// Why the connection has broken, or the last recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    /// How often it went on after a break.
    pub recoveries: u64,
    /// The file that has taken the place of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Pages, faults, and who waits for what.
    pub paging: PagingStatus,
}

/// What happens while memory comes.
#[derive(Debug)]
#[non_exhaustive]
pub enum PostcopyEvent {
    /// All memory is here: call [`memory_is_there`](crate::DestinationMachine::memory_is_there).
    Complete,
    /// The connection has broken for this reason: [`Postcopy::recover`](super::Postcopy::recover) waits for another one.
    Paused(String),
    /// Somebody waits for a page that cannot be placed: stop the guest.
    Failed(PagingError),
}
