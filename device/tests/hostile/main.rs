// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Hostile front ends and guests against a real daemon process: it survives, leaks nothing, touches nothing that it
//! must not, and serves the next front end.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../rig/mod.rs"]
mod rig;

#[path = "../rig/fuse.rs"]
mod fuse;

mod config;
mod files;
mod logs;
mod machine;
mod memory;
mod messages;
mod raw;
mod reconnection;
mod rings;
mod soak;
mod suspended;
mod told;
