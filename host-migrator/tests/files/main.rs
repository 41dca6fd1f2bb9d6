// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests are saved into snapshot files, and restored from them.
#![allow(clippy::unwrap_used)]

mod advice;
mod copies;
mod crash;
mod damage;
mod direct;
mod disk;
mod failures;
mod halves;
mod lazy;
mod mounted;
mod raw;
mod reserved;
mod rig;
mod saving;
#[path = "../software_guest/mod.rs"]
mod software_guest;
mod writers;
