// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest, as its front end presents it: features, memory, queues and the configuration space.
//!
//! | module | what it is |
//! |---|---|
//! | [`state`] | what the front end has shown of the guest |
//! | [`config_space`] | the configuration space |
//! | [`config_channel`] | tells the guest that its configuration has changed |

pub mod config_channel;
pub mod config_space;
pub mod state;

pub use state::Guest;
