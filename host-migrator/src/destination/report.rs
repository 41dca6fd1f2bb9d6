// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the destination says about a migration.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spec::stream::SectionKind;

use crate::wire::SectionError;

/// How long a source that was told of an error may go on sending.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// The progress of a migration at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReceiveState {
    /// Greeting the source.
    #[default]
    Setup,
    /// Receiving memory.
    Active,
    /// Everything has arrived; the machine is being loaded.
    Device,
    /// Waiting for the source to give the guest up.
    Ready,
    /// The guest runs here.
    Completed,
}

/// What has been received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ReceiveStatus {
    /// How far it has come.
    pub status: ReceiveState,
    /// The source's round, from 1.
    pub round: u32,
    /// Bytes received.
    pub bytes: u64,
    /// Pages received with content. A page that was received twice counts twice.
    pub pages: u64,
    /// Pages in zero runs.
    pub pages_zero: u64,
    /// Pages in discard runs.
    pub pages_discarded: u64,
    /// Bytes of memory that the source has lent instead of sending pages.
    #[serde(default)]
    pub lent_bytes: u64,
}

/// A guest that has arrived and runs.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ReceiveReport {
    /// What was received.
    pub received: ReceiveStatus,
    /// It came in TLS.
    pub tls: bool,
    /// Milliseconds from the greeting to the guest's run.
    pub total_ms: f64,
    /// Of these, the time to load the machine's state.
    pub load_ms: f64,
}

/// `found` came where `expected` was due.
pub(super) fn unexpected(found: SectionKind, expected: &'static str) -> SectionError {
    SectionError::Unexpected { found, expected }
}
