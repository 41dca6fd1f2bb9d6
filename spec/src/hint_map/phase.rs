// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How far the guest is in an epoch.

/// How far the guest is in the open epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum HintPhase {
    /// No epoch is open; hints are dropped.
    #[default]
    Closed = 0,
    /// The command id is published; the guest has not answered.
    Requested = 1,
    /// The guest answered with the id and is sending hints.
    Running = 2,
    /// The guest said that it has hinted all it can.
    Finished = 3,
    /// Hinting is over; the guest was told to take its pages back.
    Done = 4,
}

impl HintPhase {
    /// Reads a wire value.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        Some(match raw {
            0 => Self::Closed,
            1 => Self::Requested,
            2 => Self::Running,
            3 => Self::Finished,
            4 => Self::Done,
            _ => return None,
        })
    }
}
