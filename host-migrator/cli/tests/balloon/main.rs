// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon`: the real command against a real device, whose guest is driven by hand.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod command;
mod estimate;
mod hints;
mod map;
#[path = "../../../../device/tests/rig/mod.rs"]
mod rig;
mod stats;
mod status;
mod target;
