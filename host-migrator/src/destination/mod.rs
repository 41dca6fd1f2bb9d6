// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The destination's side: receives a guest, checks every byte, and runs it once the source has given
//! it up.

mod accepted;
mod channels;
mod error;
mod incoming;
mod introduction;
mod joining;
mod joins;
mod lazy;
mod lent;
mod overlap;
mod placing;
mod postcopy;
mod receiver;
mod refusal;
mod report;
mod restore;
mod waiting;

use crate::memory::page_store::PageStore;
use crate::ownership::OwnershipRecord;
use crate::vm::machine::DestinationMachine;
use crate::wire::Connection;
pub use error::ReceiveError;
pub use introduction::Incoming;
pub use lazy::{LazyRestore, restore_lazily};
pub use postcopy::{
    Postcopy, PostcopyEvent, PostcopyOptions, PostcopyPhase, PostcopyStatus, StoppedGuest,
};
pub use report::{ReceiveReport, ReceiveState, ReceiveStatus};
pub use restore::{RestoreError, RestoreReport, restore};

/// Receives a guest over `channel`, a connected source: [`Incoming::greet`] and
/// [`Incoming::receive`] in one call.
///
/// # Errors
/// As those have.
pub fn receive(
    channel: Connection,
    store: &dyn PageStore,
    machine: &mut dyn DestinationMachine,
    ownership: &OwnershipRecord,
    observer: &mut dyn FnMut(&ReceiveStatus),
) -> Result<ReceiveReport, ReceiveError> {
    Incoming::greet(channel, store, machine)?.receive(store, machine, ownership, observer)
}
