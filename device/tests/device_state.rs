// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device's state moves from one suspended device to another.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rig;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use rig::guest::{Daemon, Guest, USUAL};
use rig::migrator::Migrator;
use spec::balloon::Command;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

/// Moves the state from one suspended device to another. `damage` may change the bytes in between.
fn transfer(
    from: &mut Frontend,
    to: &mut Frontend,
    damage: impl FnOnce(&mut Vec<u8>),
) -> Result<(), vhost::Error> {
    let stopped = VhostTransferStatePhase::STOPPED;
    let (mut reader, writer) = io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    from.set_device_state_fd(VhostTransferStateDirection::SAVE, stopped, writer)
        .unwrap();
    let mut state = Vec::new();
    reader.read_to_end(&mut state).unwrap();
    from.check_device_state().unwrap();
    damage(&mut state);
    let (reader, mut writer) = io::pipe().unwrap();
    let reader = OwnedFd::from(reader);
    to.set_device_state_fd(VhostTransferStateDirection::LOAD, stopped, reader)?;
    writer.write_all(&state).unwrap();
    drop(writer);
    to.check_device_state()
}

#[test]
fn a_device_that_migrated_says_done_and_never_repeats_an_id() {
    let (source, destination) = (Daemon::start(&["--once"]), Daemon::start(&["--once"]));
    let mut guest = Guest::boot(&source, USUAL, 3);
    let mut migrator = Migrator::connect(&source.control());
    let mut ids = vec![migrator.open(1)];
    migrator.close(1);
    ids.push(migrator.open(2));
    let flags = VhostUserConfigFlags::WRITABLE;
    guest
        .front_end
        .set_config(4, flags, &7u32.to_le_bytes())
        .unwrap();
    guest.hints.stop(&guest.front_end);

    let mut arrived = Guest::negotiate(&destination, USUAL, 3);
    transfer(&mut guest.front_end, &mut arrived.front_end, |_| ()).unwrap();
    assert!(arrived.is_left_alone());
    arrived.hints.start(&mut arrived.front_end, 0);
    let config = arrived.wait_for_change();
    assert_eq!(
        (config.free_page_hint_cmd_id, config.actual),
        (Command::DONE, 7)
    );
    let mut migrator = Migrator::connect(&destination.control());
    let id = migrator.open(1);
    assert!(!ids.contains(&id) && id == ids[1].next());
}

#[test]
fn a_damaged_state_and_a_running_device_are_refused() {
    let daemons = [0; 2].map(|_| Daemon::start(&["--once"]));
    let mut source = Guest::negotiate(&daemons[0], USUAL, 3);
    let mut destination = Guest::negotiate(&daemons[1], USUAL, 3);
    let (from, to) = (&mut source.front_end, &mut destination.front_end);
    assert!(transfer(from, to, |state| state[0] ^= 1).is_err());
    assert!(transfer(from, to, |state| state[4] = 9).is_err());
    assert!(transfer(from, to, Vec::clear).is_err());
    assert!(transfer(from, to, |state| state.push(0)).is_err());
    assert!(transfer(from, to, |_| ()).is_ok());
    destination.hints.start(&mut destination.front_end, 0);
    assert!(transfer(&mut source.front_end, &mut destination.front_end, |_| ()).is_err());
}
