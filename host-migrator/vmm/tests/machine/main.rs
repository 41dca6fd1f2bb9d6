// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of whole machines on the real KVM. Without KVM they say so and pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bare;
mod clock;
mod description;
mod dirty_log;
mod guests;
mod lent;
mod ownership;
mod pause;
mod registers;
mod state;
mod throttle;
