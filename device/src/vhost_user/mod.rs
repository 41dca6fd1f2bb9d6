// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's side of the vhost-user protocol.
//!
//! | module | what it is |
//! |---|---|
//! | [`backend`] | the device as the vhost-user crates see it |
//! | [`config_channel`] | telling the guest that its configuration has changed |
//! | [`device_state`] | what migrates with the device |
//! | [`dirty_log`] | which pages the device has written |
//! | [`gate`] | what is refused or done before the vhost-user crate sees it |
//! | [`lent`] | what a file of another process is, before it is used |
//! | [`memory`] | guest memory, whose regions come and go |
//! | [`messages`] | messages as they come |
//! | [`relay`] | what stands between the front end and the vhost-user crate, and why |
//! | [`ring`] | a virtqueue |
//! | [`rings`] | taking buffers from a virtqueue and giving them back |
//! | [`session`] | one front end's connection, from its first message to its end |
//! | [`sigbus`] | memory that disappears under the device |
//! | [`transfer`] | the pipe that the state migrates through |
//! | [`worker`] | waiting for the crate's worker thread |

pub mod backend;
pub mod config_channel;
pub mod device_state;
pub mod dirty_log;
pub mod gate;
pub mod lent;
pub mod memory;
pub mod messages;
pub mod relay;
pub mod ring;
pub mod rings;
pub mod session;
pub mod sigbus;
pub mod transfer;
pub mod worker;
