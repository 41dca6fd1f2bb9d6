// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The destination's side: receives a guest, checks every byte, and runs it once the source has given
//! it up.

mod error;
mod incoming;
mod receiver;
mod waiting;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use spec::stream::SectionKind;

use crate::memory::guest_memory::GuestMemory;
use crate::ownership::OwnershipRecord;
use crate::vm::machine::DestinationMachine;
use crate::wire::{Connection, SectionError};
pub use error::ReceiveError;
pub use incoming::Incoming;

/// How long a source that was told of an error may go on sending.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The progress of a migration at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
}

/// A guest that has arrived and runs.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReceiveReport {
    /// What was received.
    pub received: ReceiveStatus,
    /// Milliseconds from the greeting to the guest's run.
    pub total_ms: f64,
    /// Of these, the time to load the machine's state.
    pub load_ms: f64,
}

/// Receives a guest over `channel`, a connected source: [`Incoming::greet`] and
/// [`Incoming::receive`] in one call.
///
/// # Errors
/// As those have.
pub fn receive(
    channel: Connection,
    ram: &dyn GuestMemory,
    machine: &mut dyn DestinationMachine,
    ownership: &OwnershipRecord,
    observer: &mut dyn FnMut(&ReceiveStatus),
) -> Result<ReceiveReport, ReceiveError> {
    Incoming::greet(channel, ram, machine)?.receive(ram, machine, ownership, observer)
}

fn unexpected(found: SectionKind, expected: &'static str) -> SectionError {
    SectionError::Unexpected { found, expected }
}
