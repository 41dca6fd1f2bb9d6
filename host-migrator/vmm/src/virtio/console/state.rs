// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console's state for a migration.

use serde::{Deserialize, Serialize};

use super::control::PortState;
use crate::virtio::VirtioState;

/// The state of a stopped console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Transport and queues. The fields about a back end are not used.
    pub virtio: VirtioState,
    /// The driver's state.
    pub port: PortState,
    /// Bytes of the transmit queue's next chain that the host has received.
    pub taken: u32,
}
