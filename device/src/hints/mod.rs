// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free page hinting: the guest's free pages become bits of a map.
//!
//! | module | what it is |
//! |---|---|
//! | [`epochs`] | the device as the migrator sees it |
//! | [`latency`] | how long hints take |
//! | [`person`] | the device as a person sees it |
//! | [`queue`] | from descriptor chains to bits of the map |
//! | [`shared_map`] | the memory of a map |
//! | [`state_machine`] | epochs of the migrator, command ids of the guest |

pub mod epochs;
pub mod latency;
pub mod person;
pub mod queue;
pub mod shared_map;
pub mod state_machine;
