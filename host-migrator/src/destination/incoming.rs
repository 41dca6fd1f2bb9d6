// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a destination is used: wait for a source that fits, and receive its guest.

use std::thread::{self, ScopedJoinHandle};

use super::accepted::AcceptedSource;
use super::error::ReceiveError;
use super::introduction::{Heard, Incoming, Shape, hear};
use super::joins::Session;
use super::postcopy::PostcopyOptions;
use super::receiver::Receiver;
use super::report::{ReceiveReport, ReceiveStatus};
use super::waiting;
use crate::memory::page_store::PageStore;
use crate::ownership::OwnershipRecord;
use crate::panics::text_of;
use crate::vm::machine::DestinationMachine;
use crate::wire::{Connection, Listener};

impl Incoming {
    /// Waits at `listener` until a source whose guest fits `store` and `machine` has introduced itself. Connections of anybody else
    /// are dropped: each has a short time, and many may be there at once. The source is accepted, and its channels join at
    /// `listener`, too.
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

    /// Hears out the only source that there is. Its channels are those that were given to the connection
    /// ([`Connection::with_more`]).
    ///
    /// # Errors
    /// [`ReceiveError`] if it is no source, its guest does not fit, or its channels do not join; it has been told.
    pub fn greet(
        connection: Connection,
        store: &dyn PageStore,
        machine: &mut dyn DestinationMachine,
    ) -> Result<Self, ReceiveError> {
        let shape = Shape::of(store);
        let mut source = match hear(connection, &shape, &|| ())? {
            Heard::Source(source) => *source,
            Heard::Channel(joining) => {
                joining.refuse(&ReceiveError::NoSession);
                return Err(ReceiveError::NoSession);
            }
        };
        if let Err(error) = source.judged_by(machine) {
            source.refuse(&error);
            return Err(error);
        }
        let mut given = source.redial.take_given();
        if source.wanted + source.wanted_lanes == 0 {
            given.clear();
        }
        let mut session = AcceptedSource::accept(source)?;
        match join_given(&mut session, given, &shape) {
            Ok(()) => session.complete(),
            Err(error) => {
                session.refuse(&error);
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
        Receiver::new(self, store, ownership, observer, None).receive(machine)
    }

    /// As [`Incoming::receive`], for a source that may hand the guest over before its memory. If it does, the guest runs when this
    /// returns, and the rest comes while it runs: `postcopy` hears of it before the machine is loaded.
    ///
    /// # Errors
    /// As [`Incoming::receive`].
    pub fn receive_early(
        self,
        store: &dyn PageStore,
        machine: &mut dyn DestinationMachine,
        ownership: &OwnershipRecord,
        observer: &mut dyn FnMut(&ReceiveStatus),
        postcopy: PostcopyOptions,
    ) -> Result<ReceiveReport, ReceiveError> {
        Receiver::new(self, store, ownership, observer, Some(postcopy)).receive(machine)
    }
}

/// Lets the `given` connections join as channels.
fn join_given(
    session: &mut AcceptedSource,
    given: Vec<Connection>,
    shape: &Shape,
) -> Result<(), ReceiveError> {
    // At the same time, because the source may begin with any of them.
    let heard: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (given.into_iter())
            .map(|connection| scope.spawn(|| hear(connection, shape, &|| ())))
            .collect();
        threads.into_iter().map(ScopedJoinHandle::join).collect()
    });
    for heard in heard {
        let heard = heard.unwrap_or_else(|panic| Err(ReceiveError::Panicked(text_of(&*panic))));
        match heard? {
            Heard::Channel(joining) => {
                if let Some((error, _)) = session.join(joining) {
                    return Err(error);
                }
            }
            Heard::Source(_) => return Err(ReceiveError::Busy),
        }
    }
    if session.is_complete() {
        Ok(())
    } else {
        Err(session.missing())
    }
}
