// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that other processes lend to the device: what it must be, how it is mapped, and what is logged of its writes.
//!
//! | module | what it is |
//! |---|---|
//! | [`sigbus`] | memory that disappears under the device |
//! | [`lent_file`] | what a file of another process is, before it is used |
//! | [`dirty_log`] | which pages the device has written |
//! | [`guest_memory`] | guest memory, whose regions come and go |
//! | [`shared_map`] | the memory of a hint map |

pub mod dirty_log;
pub mod guest_memory;
pub mod lent_file;
pub mod shared_map;
pub mod sigbus;
