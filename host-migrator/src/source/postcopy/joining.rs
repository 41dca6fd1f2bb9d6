// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lanes of a postcopy join the session of its migration: when it begins, and again after a break.

use std::io;
use std::time::Duration;

use spec::stream::{MAX_LANES, Nonce};

use crate::sink::channels::{Introduced, introduce_all};
use crate::source::error::MigrationError;
use crate::wire::{Connection, StopFlag};

/// How lanes join.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    /// The secret of the session.
    pub(crate) nonce: Nonce,
    /// The number of the first lane: they follow the channels.
    pub(crate) first: u32,
    /// How many there are.
    pub(crate) lanes: u32,
}

/// Lanes that have joined.
pub(crate) struct JoinedLanes {
    pub(crate) lanes: Vec<Introduced>,
    /// Ends the waits of all of them.
    pub(crate) stop: StopFlag,
}

/// How many lanes a postcopy with `channels` channels has: one for what is asked for, and at least one for the rest.
pub(crate) fn count(channels: u32) -> u32 {
    1 + channels.clamp(1, MAX_LANES - 1)
}

/// Has the lanes of `session` join over connections of `connect`. The destination may be silent for `patience`.
pub(crate) fn join(
    session: Session,
    connect: impl Fn() -> io::Result<Connection> + Sync,
    patience: Duration,
) -> Result<JoinedLanes, MigrationError> {
    let Session {
        nonce,
        first,
        lanes,
    } = session;
    let joined = introduce_all(first, lanes, &connect, nonce).map_err(MigrationError::Join)?;
    let mut joined = JoinedLanes {
        lanes: joined,
        stop: StopFlag::default(),
    };
    for lane in &mut joined.lanes {
        // Not that of the control connection, which may end before them.
        lane.peer.set_stop(joined.stop.clone());
        lane.out.set_stop(joined.stop.clone());
        lane.peer.set_patience(patience);
        lane.out.set_patience(patience);
    }
    Ok(joined)
}
