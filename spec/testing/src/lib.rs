// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of several crates share.
//!
//! It depends only on the types that the parts agree on, so every crate's tests can use it.
//!
//! | module | what it is |
//! |---|---|
//! | `wait` | waits for something without guessing how long it takes: [`eventually`], [`within`] |
//! | `skip` | says that this machine cannot run a test: [`skipped`] |
//! | [`process`] | what another process has open |
//! | [`bits`] | the pages of a bitmap, and their runs |
//! | [`bytes`] | numbers as protocols encode them |
//! | [`memory_file`] | sealed memory files, hint maps |
//! | [`virtqueue`] | a hand-made virtqueue from the driver's side |
//! | [`control`] | a client of the device's control protocol |
//! | [`agent`] | frames of a guest's agent |
//! | [`vhost_user`] | messages of the vhost-user protocol |
//!
//! The random generator of the tests is [`spec::stamp::Random`], because the guests use it, too.
#![forbid(unsafe_code)]

pub mod agent;
pub mod bits;
pub mod bytes;
pub mod control;
pub mod memory_file;
pub mod process;
mod skip;
pub mod vhost_user;
pub mod virtqueue;
mod wait;

pub use process::{open_files, seen_of_process};
pub use skip::skipped;
pub use wait::{PATIENCE, eventually, within};
