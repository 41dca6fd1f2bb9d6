// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that other processes lend to the device: how it is checked and mapped, and the log of writes to it.
//!
//! | module | what it is |
//! |---|---|
//! | [`sigbus`] | memory that disappears under the device |
//! | [`lent_file`] | checks a file of another process before it is used |
//! | [`dirty_log`] | which pages the device has written |
//! | [`guest_memory`] | guest memory, whose regions come and go |
//! | [`shared_map`] | the memory of a hint map |

pub mod dirty_log;
pub mod guest_memory;
pub mod lent_file;
pub mod shared_map;
pub mod sigbus;
