// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine tells its owner.

use spec::bare::Event;

/// What happens to a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// It announces something.
    Announced(Event),
    /// It switched itself off: it never runs again.
    PoweredOff,
    /// It wants to be reset; this machine does not reset, and never runs again.
    Reset,
    /// It cannot go on, for the reason given: it never runs again.
    Crashed(String),
}
