// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrations that fail or are cancelled: the source's guest runs on and gets its memory back, and the next migration is
//! exact.

use std::thread;
use std::time::Duration;

use host_migrator::report::stats::MigrationState;
use lacuna::compare::Host;
use lacuna::control::{Command, CompressionName};
use lacuna::machine::MachineState;

use crate::lab::wire::{Stuck, cut_after, cut_channel_after};
use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, ends, lacuna, skipped_without_kvm, status, tell,
    until_round, whole_pass,
};

/// Checks that the guest runs on at the source: all its memory is right, and it was told DONE for each request.
fn runs_on(source: &mut Host) {
    assert_eq!(status(source).machine, MachineState::Running);
    let guest = whole_pass(source);
    assert_eq!(guest.wrong, 0, "{guest:?}");
    if guest.hint_rounds > 0 {
        source
            .wait_until("the guest to get its pages back", PATIENCE, |status| {
                Ok(status.guest.as_ref().is_some_and(|guest| guest.dones > 0))
            })
            .expect("the guest is told DONE");
    }
}

/// Checks that a migration after the failures sends every page.
fn next_migration_is_exact(lab: &Lab, source: &mut Host) {
    lab.move_whole(&Migration::default(), source, "last");
}

/// A migration slow enough to be interrupted in the middle.
fn slow() -> Migration {
    Migration {
        max_bandwidth: Some(16 << 20),
        downtime_limit: 10,
        ..Default::default()
    }
}

#[test]
fn cancel_gives_the_guest_back_in_every_round() {
    if skipped_without_kvm("cancel") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    for (name, round) in [("first", 1), ("second", 2)] {
        let (_destination, uri) = lab.receiving(name, true);
        slow().begin(&source, &uri);
        until_round(&mut source, round);
        tell(&source, &Command::MigrateCancel);
        ends(&mut source, MigrationState::Cancelled);
        runs_on(&mut source);
    }
    next_migration_is_exact(&lab, &mut source);
}

#[test]
fn a_killed_destination_costs_only_the_migration() {
    if skipped_without_kvm("destination killed") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    for (name, round) in [("early", 0), ("first", 1), ("second", 2)] {
        let (mut destination, uri) = lab.receiving(name, true);
        slow().begin(&source, &uri);
        until_round(&mut source, round);
        destination.machine.kill();
        let ended = ends(&mut source, MigrationState::Failed);
        assert!(ended.error_desc.is_some());
        runs_on(&mut source);
    }
    next_migration_is_exact(&lab, &mut source);
}

#[test]
fn a_connection_that_breaks_anywhere_leaves_the_guest_at_the_source() {
    if skipped_without_kvm("broken connection") {
        return;
    }
    let lab = Lab::new(BareGuest {
        dirty_rate: "1M",
        ..Default::default()
    });
    let mut source = lab.running("source");
    for (name, limit) in [
        ("hello", 10),
        ("layout", 80),
        ("pages", 200_000),
        ("middle", 10 << 20),
        ("late", 30 << 20),
    ] {
        let (_destination, uri) = lab.receiving(name, true);
        Migration::on_one_connection().begin(&source, &cut_after(&uri, limit));
        ends(&mut source, MigrationState::Failed);
        runs_on(&mut source);
    }
    next_migration_is_exact(&lab, &mut source);
}

#[test]
fn a_channel_that_breaks_anywhere_leaves_the_guest_at_the_source() {
    if skipped_without_kvm("broken channel") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let (plain, zstd) = (CompressionName::None, CompressionName::Zstd);
    for (name, limit, compression) in [
        ("joining", 10, plain),
        ("pages", 200_000, plain),
        ("middle", 5 << 20, plain),
        ("compressed", 200_000, zstd),
        ("middle-compressed", 5 << 20, zstd),
    ] {
        let migration = Migration {
            multifd_channels: Some(2),
            compression,
            ..Migration::default()
        };
        let (_destination, uri) = lab.receiving(name, true);
        migration.begin(&source, &cut_channel_after(&uri, limit));
        ends(&mut source, MigrationState::Failed);
        runs_on(&mut source);
    }
    next_migration_is_exact(&lab, &mut source);
}

#[test]
fn a_peer_that_reads_nothing_blocks_neither_status_nor_cancel() {
    if skipped_without_kvm("blocked peer") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let (_destination, uri) = lab.receiving("destination", true);
    let stuck = Stuck::new(&uri);
    Migration::on_one_connection().begin(&source, &stuck.uri);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(status(&source).machine, MachineState::Running);
    tell(&source, &Command::MigrateCancel);
    ends(&mut source, MigrationState::Cancelled);
    runs_on(&mut source);
    stuck.end();
}

#[test]
fn a_destination_with_another_layout_refuses() {
    if skipped_without_kvm("other layout") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let other = Lab::new(BareGuest {
        memory: "300M",
        ..Default::default()
    });
    let (_destination, uri) = other.receiving("other", true);
    Migration::default().begin(&source, &uri);
    let ended = ends(&mut source, MigrationState::Failed);
    let error = ended.error_desc.unwrap_or_default();
    assert!(
        error.contains("memory") || error.contains("layout"),
        "{error}"
    );
    runs_on(&mut source);
    next_migration_is_exact(&lab, &mut source);
}

/// Waits until the machine says that its balloon device is lost, or no longer lost.
fn balloon_is_lost(source: &mut Host, lost: bool) {
    source
        .wait_until("the balloon", PATIENCE, |status| {
            Ok(status.balloon_lost.is_some() == lost)
        })
        .expect("the loss is noticed, and its end");
}

#[test]
fn a_machine_whose_device_has_died_migrates_without_it() {
    if skipped_without_kvm("device killed") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    source.device.kill();
    balloon_is_lost(&mut source, true);
    let moved = lab.move_whole(&Migration::default(), &mut source, "destination");
    assert_eq!(moved.report.totals.pages_hinted, 0);
}

#[test]
fn a_device_that_was_started_again_on_the_same_paths_takes_over_and_hints() {
    if skipped_without_kvm("device started again") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    source.device.kill();
    balloon_is_lost(&mut source, true);
    lab.start_device_again(&mut source, 0);
    balloon_is_lost(&mut source, false);
    let moved = lab.move_whole(&Migration::default(), &mut source, "destination");
    assert!(moved.report.totals.pages_hinted > 0, "{:?}", moved.report);
}

#[test]
fn a_destination_whose_device_dies_while_memory_arrives_refuses_at_once() {
    if skipped_without_kvm("device killed at the destination") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", true);
    // All of memory takes many seconds.
    let crawling = Migration {
        max_bandwidth: Some(1 << 20),
        ..slow()
    };
    crawling.begin(&source, &uri);
    until_round(&mut source, 1);
    destination.device.kill();
    let ended = ends(&mut source, MigrationState::Failed);
    let error = ended.error_desc.unwrap_or_default();
    assert!(error.contains("the balloon back end is lost"), "{error}");
    assert_eq!(ended.round, 1);
    runs_on(&mut source);
    next_migration_is_exact(&lab, &mut source);
}

#[test]
fn a_destination_whose_device_is_dead_refuses_before_the_first_page_and_waits_on() {
    if skipped_without_kvm("device dead at the destination") {
        return;
    }
    let lab = Lab::new(BareGuest::default());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", true);
    destination.device.kill();
    balloon_is_lost(&mut destination, true);
    Migration::default().begin(&source, &uri);
    let ended = ends(&mut source, MigrationState::Failed);
    let error = ended.error_desc.unwrap_or_default();
    assert!(error.contains("the balloon back end is lost"), "{error}");
    assert_eq!(ended.round, 0);
    runs_on(&mut source);
    lab.start_device_again(&mut destination, 1);
    balloon_is_lost(&mut destination, false);
    Migration::default().begin(&source, &uri);
    ends(&mut source, MigrationState::Completed);
}

#[test]
fn a_mistake_on_the_command_line_gets_one_clear_sentence() {
    let long = "x".repeat(108);
    let long_address = format!("unix:{long}");
    for (args, expected) in [
        (
            vec!["send", "tcp:h:1", "--control", "x", "--max-bandwidth", "0"],
            "leave the flag out",
        ),
        (vec!["balloon", "target", "64", "-c", "x"], "64M"),
        (vec!["run", "--memory", "512", "--control", "x"], "512M"),
        (vec!["status", "--control", &long], "107 bytes"),
        (vec!["send", &long_address, "--control", "x"], "108 bytes"),
        (
            vec!["run", "--memory", "2X", "--control", "x"],
            "not a size",
        ),
        (vec!["send", "udp:1.2.3.4:5", "--control", "x"], "udp"),
        (
            vec!["send", "tcp:127.0.0.1:1", "--control", "/nowhere/at/all"],
            "no machine answers",
        ),
        (
            vec!["status", "--control", "/nowhere/at/all"],
            "no machine answers",
        ),
        (vec!["compare", "--hints", "perhaps"], "perhaps"),
        (
            vec!["run", "--guest", "linux", "--control", "x"],
            "--kernel",
        ),
    ] {
        let output = lacuna(&args);
        assert!(!output.status.success(), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
