// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration carries of the console.

use serde::{Deserialize, Serialize};

use super::control::PortState;
use crate::virtio::VirtioState;

/// The state of a console that is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Transport and queues; nothing of a back end's.
    pub virtio: VirtioState,
    /// How far the driver is.
    pub port: PortState,
    /// Bytes of the transmit queue's next chain that the host has had.
    pub taken: u32,
}
