// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests of several crates share.
//!
//! It lies above the types that the parts agree on and below all else, because all may depend on it there.
//!
//! | module | what it is |
//! |---|---|
//! | `wait` | waiting without guessing: [`eventually`], [`within`] |
//! | `skip` | a word about tests that this machine cannot run: [`skipped`] |
//! | [`process`] | what another process has open |
//! | [`bits`] | the pages of a bitmap, and their runs |
//! | [`bytes`] | numbers as protocols write them |
//! | [`memory_file`] | sealed memory files, hint maps |
//! | [`virtqueue`] | a virtqueue from the driver's side, laid by hand |
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
