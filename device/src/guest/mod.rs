// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest, as its front end shows it: features, memory, queues, and the configuration space that both write.
//!
//! | module | what it is |
//! |---|---|
//! | [`state`] | what the front end has shown of the guest |
//! | [`config_space`] | what guest and host tell each other beside the queues |
//! | [`config_channel`] | telling the guest that its configuration has changed |

pub mod config_channel;
pub mod config_space;
pub mod state;

pub use state::Guest;
