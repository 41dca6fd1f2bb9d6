// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest, a front end and a migrator around a real daemon process.
#![allow(dead_code, reason = "every test file uses its own part of the rig")]

pub mod agent;
pub mod ballooning;
pub mod guest;
pub mod migrator;
pub mod person;
pub mod queue;

pub use spec_testing::{PATIENCE, eventually};
