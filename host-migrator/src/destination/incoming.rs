// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a destination is used: wait for a source that fits, and receive its guest.

use super::error::ReceiveError;
use super::introduction::{Incoming, Shape};
use super::receiver::Receiver;
use super::report::{ReceiveReport, ReceiveStatus};
use super::waiting;
use crate::memory::page_store::PageStore;
use crate::ownership::OwnershipRecord;
use crate::vm::machine::DestinationMachine;
use crate::wire::{Connection, Listener};

impl Incoming {
    /// Waits at `listener` until a source whose guest fits `store` and `machine` has introduced itself. Connections of anybody else
    /// are dropped: each has a short time, and many may be there at once.
    ///
    /// # Errors
    /// [`ReceiveError`] if nobody can be waited for.
    pub fn wait(
        listener: &Listener,
        store: &dyn PageStore,
        machine: &mut dyn DestinationMachine,
    ) -> Result<Self, ReceiveError> {
        waiting::wait(listener, &Shape::of(store), machine)
    }

    /// Hears out the only one that there is.
    ///
    /// # Errors
    /// [`ReceiveError`] if it is no source, or its guest does not fit; it has been told.
    pub fn greet(
        channel: Connection,
        store: &dyn PageStore,
        machine: &mut dyn DestinationMachine,
    ) -> Result<Self, ReceiveError> {
        let mut source = Self::hear(channel, &Shape::of(store), &|| ())?;
        match source.judged_by(machine) {
            Ok(()) => Ok(source),
            Err(error) => {
                source.refuse(&error);
                Err(error)
            }
        }
    }

    /// Receives the guest into `store`, whatever that held before, and runs it in `machine` when the source has handed
    /// it over. `observer` is called after every section.
    ///
    /// # Errors
    /// [`ReceiveError`]. The guest does not run here. `ownership` says whether it is gone: if the owner is not
    /// [`Owner::There`](crate::Owner::There), the machine has the whole guest and must keep it.
    pub fn receive(
        self,
        store: &dyn PageStore,
        machine: &mut dyn DestinationMachine,
        ownership: &OwnershipRecord,
        observer: &mut dyn FnMut(&ReceiveStatus),
    ) -> Result<ReceiveReport, ReceiveError> {
        Receiver::new(self, store, ownership, observer).receive(machine)
    }
}
