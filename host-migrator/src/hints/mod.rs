// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon device as a source of free page hints: its control socket and the map that both share.

mod control_client;
mod device;
mod given_up;

pub use control_client::ControlClient;
pub use device::DeviceHints;
