// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of the vhost-user protocol.
//!
//! | module | what it is |
//! |---|---|
//! | [`worker`] | waiting for the crate's worker thread |
//! | [`transfer`] | the pipe that the state migrates through |
//! | [`backend`] | the device as the vhost-user crates see it |
//! | [`messages`] | messages as they come |
//! | [`gate`] | what is refused or done before the vhost-user crate sees it |
//! | [`relay`] | what stands between the front end and the vhost-user crate, and why |
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
