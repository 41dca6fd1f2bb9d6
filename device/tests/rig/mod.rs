// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest, a front end and a migrator around a real daemon process.
#![allow(dead_code, reason = "every test file uses its own part of the rig")]

pub mod agent;
pub mod ballooning;
pub mod guest;
pub mod migrator;
pub mod person;
pub mod queue;

use spec::balloon::CommandId;

pub use spec_testing::{PATIENCE, eventually};

/// The usual guest of `daemon` and its migrator, after the guest has started the round of epoch 1. Returns the round's
/// id, too.
pub fn hinting(daemon: &guest::Daemon) -> (guest::Guest, migrator::Migrator, CommandId) {
    let mut guest = guest::Guest::boot(daemon, guest::USUAL, 3);
    let mut migrator = migrator::Migrator::connect(&daemon.control());
    let id = migrator.open(1);
    guest.start_round(id);
    (guest, migrator, id)
}
