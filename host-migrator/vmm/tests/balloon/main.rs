// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The balloon on virtio-mmio with the real back end in a process of its own, guest memory in memory files and
//! a real virtual machine for kicks and interrupts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod daemon;
mod discards;
mod driver;
mod failures;
mod guest_access;
mod lent;
mod migration;
mod plain;
mod refusing;
mod rig;
#[path = "../shared/mod.rs"]
mod shared;
mod vcpu;
