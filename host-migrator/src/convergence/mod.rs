// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the migration of a busy guest comes to its end: when the guest is throttled, and when a long round is harvested.
//!
//! Nothing here does I/O or reads a clock, so a migration, a test and a simulation use the same decisions.

pub mod background_sync;
pub mod controller;
pub mod downtime;
pub mod throttle;
