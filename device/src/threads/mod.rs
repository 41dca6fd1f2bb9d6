// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's threads.
//!
//! | module | what it is |
//! |---|---|
//! | [`context`] | a thread's device and sandbox |
//! | [`server`] | a thread that serves until it is told to stop |

pub mod context;
pub mod server;

pub use context::{confine, device, set_device, set_filters, spawn};
pub use server::ServerThread;
