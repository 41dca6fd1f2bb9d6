// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The console on virtio-mmio, with its port connected to a real socket, and a driver with hand-made queues in guest
//! memory. Without KVM the tests say so and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod driver;
mod hostile;
mod migration;
mod rig;
#[path = "../shared/mod.rs"]
mod shared;
mod talk;
