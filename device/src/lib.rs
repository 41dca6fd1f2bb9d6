// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vhost-user back end for the virtio memory balloon, with free page hinting.
//!
//! The front end (a VMM) connects to the vhost-user socket; a migrator connects to the control socket,
//! hands over a shared bitmap and opens and closes hint epochs. The guest's free page hints of the open
//! epoch end up in the bitmap, and nowhere else: no memory is discarded, no page is written.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | the command line, and the [`Config`] it becomes |
//! | [`daemon`] | [`run`]: front ends come and go, the device stays |
//! | [`balloon`] | the device: negotiated features, configuration space, queues |
//! | [`backend`] | the device as the vhost-user crates see it |
//! | [`worker`] | waiting for the crate's worker thread |
//! | [`epochs`] | the device as the migrator sees it |
//! | [`hinting`] | the state machine of free page hinting |
//! | [`hint_queue`] | from descriptor chains to bits of the map |
//! | [`rings`] | taking buffers from a virtqueue and giving them back |
//! | [`shared_map`] | the migrator's memory file |
//! | [`state`] | what migrates with the device |
//! | [`control`] | the control socket |
//! | [`relay`] | what stands between the front end and the vhost-user crate, and why |
//! | [`config_channel`] | telling the guest that its configuration has changed |
//! | [`sockets`] | unix sockets: listening, and messages that carry file descriptors |
#![forbid(unsafe_code)]

pub mod args;
pub mod backend;
pub mod balloon;
pub mod config_channel;
pub mod control;
pub mod daemon;
pub mod epochs;
pub mod hint_queue;
pub mod hinting;
pub mod relay;
pub mod rings;
pub mod shared_map;
pub mod sockets;
pub mod state;
pub mod worker;

pub use args::{Args, Config};
pub use daemon::{DaemonError, run};
