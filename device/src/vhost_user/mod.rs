// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of the vhost-user protocol.
//!
//! | module | what it is |
//! |---|---|
//! | [`worker`] | waiting for the crate's worker thread |
//! | [`transfer`] | the pipe through which the state migrates |
//! | [`backend`] | the device as the vhost-user crates see it |
//! | [`messages`] | messages in raw form |
//! | [`gate`] | checks messages before the vhost-user crate sees them, and does what the crate cannot |
//! | [`relay`] | passes messages between the front end and the vhost-user crate |
//! | [`front_end`] | one front end's connection, from its first message to its end |
//! | [`link`] | that connection, as other threads see it |

pub mod backend;
pub mod front_end;
pub mod gate;
pub mod link;
pub mod messages;
pub mod relay;
pub mod transfer;
pub mod worker;
