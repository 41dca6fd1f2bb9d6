// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's agent: a second source of hints, page by page ([`spec::agent`]).
//!
//! Its maps go into the same hint map as the driver's hints, under the same lock and the same rule: a map counts only
//! if its epoch is the open one ([`crate::hints::agent_maps`]).
//!
//! | module | what it is |
//! |---|---|
//! | [`server`] | the socket at the host's end of the agent's port |
//! | [`door`] | who may become the agent |
//! | [`connection`] | a connection, and the frames that arrive on it |
//! | [`key`] | the file with the agent's key |

pub mod connection;
pub mod door;
pub mod key;
pub mod server;

pub use server::AgentServer;
