// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What other threads want of a migration that is or may become a postcopy.

use std::sync::mpsc;

use parking_lot::{Condvar, Mutex};

use crate::snapshot::{Saved, SnapshotError, Storage};
use crate::wire::Connection;

/// Orders for the migration's thread.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    start: bool,
    /// The migration waits for a connection to go on over.
    waits: bool,
    order: Option<Order>,
}

/// How a postcopy that has broken goes on.
#[derive(Debug)]
pub(crate) enum Order {
    /// Over this connection.
    Recover(Box<Connection>),
    /// It does not: the memory is given up.
    GiveUp,
    /// It does not: what the destination may lack is saved.
    SaveHalf(HalfOrder),
}

/// An order to save what this side still has.
#[derive(Debug)]
pub(crate) struct HalfOrder {
    /// Where to.
    pub(crate) storage: Box<dyn Storage>,
    /// Gets the result.
    pub(crate) answer: mpsc::Sender<Result<Saved, SnapshotError>>,
}

impl Orders {
    /// The guest is to be handed over now.
    pub(crate) fn start(&self) {
        self.state.lock().start = true;
    }

    pub(crate) fn is_start_wanted(&self) -> bool {
        self.state.lock().start
    }

    /// Waits for an order.
    pub(crate) fn wait(&self) -> Order {
        let mut state = self.state.lock();
        state.waits = true;
        loop {
            if let Some(order) = state.order.take() {
                state.waits = false;
                return order;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Gives an order to a migration that waits for one. Otherwise it comes back.
    pub(crate) fn give(&self, order: Order) -> Result<(), Order> {
        let mut state = self.state.lock();
        if !state.waits || state.order.is_some() {
            return Err(order);
        }
        state.order = Some(order);
        self.changed.notify_all();
        Ok(())
    }
}
