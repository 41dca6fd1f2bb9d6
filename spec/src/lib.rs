// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the parts of Lacuna agree on.
//!
//! Wire types, layouts and the arithmetic of page ranges: `no_std`, no allocation, no I/O, so that a
//! guest without an operating system, a device and a migrator all read the same definition.
//!
//! | module | used by, and for what |
//! |---|---|
//! | [`page`] | everybody: page numbers and ranges, rounding inward |
//! | [`balloon`] | guest driver and device: the virtio-balloon types that `virtio-bindings` lacks |
//! | [`hint_map`] | device and migrator: the shared bitmap of hinted pages |
//! | [`agent`] | guest agent and device: maps of free pages, at the grain of one page |
//! | [`control`] | device, migrator and people: epochs of hints; target, statistics, maps |
//! | [`page_map`] | device and people: a map of guest memory |
//! | [`stream`] | source and destination: the migration stream |
//! | [`mod@file`] | a save and its restore: the snapshot file |
//! | [`clause`] | the model and test builds: the clauses of the rule, each with a switch |
//! | [`trace`] | everybody, in tests: a record of what was done, in one order, checked against the rule |
//! | [`bare`] | the bare-metal guest and the machine that runs it |
//! | [`gaps`] | the bare guest and its machine: how evenly the guest runs |
//! | [`stamp`] | guest workloads and their checks: what a page in use contains |
//!
//! The documents beside this crate (`spec/*.md`) give the reasons.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[cfg(any(test, feature = "trace-check"))]
extern crate alloc;

pub mod agent;
pub mod balloon;
pub mod bare;
pub mod clause;
pub mod control;
pub mod file;
pub mod gaps;
pub mod hint_map;
pub mod histogram;
pub mod page;
pub mod page_map;
pub mod stamp;
pub mod stream;
pub mod sync;
pub mod trace;
mod wire;

pub use page::{PAGE_SHIFT, PAGE_SIZE, PageRange};
