// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events of a machine, for its owner.

use spec::bare::Event;

/// An event of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest announces something.
    Announced(Event),
    /// The guest has powered off. It never runs again.
    PoweredOff,
    /// The guest has reset the machine. This machine cannot reset; the guest never runs again.
    Reset,
    /// The guest has crashed, for the given reason. It never runs again.
    Crashed(String),
}
