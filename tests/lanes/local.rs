// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A local hand-over: the guest goes to another process on this host, with its memory files.

use host_migrator::Owner;
use host_migrator::report::stats::MigrationState;
use lacuna::args::GuestKind;
use lacuna::compare::{Host, Record, ask_about_lent};
use lacuna::control::Command;
use lacuna::machine::{MachineState, Status};
use spec::stream::SectionKind;

use crate::lab::unix_wire;
use crate::lab::wire::Fault;
use crate::lab::{
    BareGuest, Lab, Migration, PATIENCE, end_of, ends, lacuna, release_and_check,
    skipped_without_kvm, status, tell, whole_pass,
};

fn local() -> Migration {
    Migration {
        local: true,
        ..Migration::default()
    }
}

/// Hands the guest of `source` over to a new host, `name`. Every page in use must have what the guest has last written.
fn hand_over(lab: &Lab, source: &mut Host, name: &'static str) -> Host {
    let (mut destination, uri) = lab.receiving_at(name, &lab.unix(name), true);
    local().begin(source, &uri);
    let ended = ends(source, MigrationState::Completed);
    assert_eq!(ended.ram.lent_bytes, 256 << 20);
    assert!(ended.ram.transferred < 64 << 10, "{ended:?}");
    destination
        .wait_until("the guest to arrive", PATIENCE, |status| {
            Ok(status.machine == MachineState::Held)
        })
        .expect("the guest arrives");
    let verdict = ask_about_lent(GuestKind::Bare, source, &destination).expect("one memory");
    assert_eq!(verdict.pages_compared, (256 << 20) / 4096);
    lab.assert_right(&verdict, name);
    release_and_check(&mut destination);
    destination
}

#[test]
fn a_guest_goes_from_process_to_process_with_its_memory_and_then_over_tcp() {
    if skipped_without_kvm("local chain") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut first = lab.running("first");
    let mut second = hand_over(&lab, &mut first, "second");
    // The memory outlives the process that made it.
    first.machine.kill();
    first.device.kill();
    assert_eq!(whole_pass(&mut second).wrong, 0);
    let mut third = hand_over(&lab, &mut second, "third");
    let moved = lab.move_whole(&Migration::default(), &mut third, "fourth");
    assert!(moved.report.lent.is_none());
}

#[test]
fn a_hand_over_that_is_refused_changes_nothing_and_the_next_one_is_exact() {
    if skipped_without_kvm("local, refused") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    // Over TCP nothing can be lent.
    let (_tcp, uri) = lab.receiving("tcp", true);
    local().begin(&source, &uri);
    let error = ends(&mut source, MigrationState::Failed).error_desc;
    assert!(
        error
            .unwrap_or_default()
            .contains("unix socket without TLS only")
    );
    // This destination has lost its device, and says so before it takes memory.
    let (mut lame, uri) = lab.receiving_at("lame", &lab.unix("lame"), true);
    lame.device.kill();
    lame.wait_until("the loss", PATIENCE, |status| {
        Ok(status.balloon_lost.is_some())
    })
    .expect("the loss is noticed");
    local().begin(&source, &uri);
    let error = ends(&mut source, MigrationState::Failed).error_desc;
    assert!(error.unwrap_or_default().contains("back end is lost"));
    assert_eq!(status(&source).machine, MachineState::Running);
    assert_eq!(whole_pass(&mut source).wrong, 0);
    hand_over(&lab, &mut source, "destination");
}

#[test]
fn a_source_that_handed_its_guest_over_ends_and_the_guest_runs_on() {
    if skipped_without_kvm("local, source quits") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let mut destination = hand_over(&lab, &mut source, "destination");
    tell(&source, &Command::Quit(None));
    assert_eq!(end_of(&mut source), Some(0));
    assert_eq!(whole_pass(&mut destination).wrong, 0);
}

/// Hands the guest over a wire on which nothing passes from the section `kind` on, and kills the destination when `is_there` says
/// that the source is there. Returns the source, whose migration has ended in the state `how`.
fn killed_at(
    lab: &Lab,
    kind: SectionKind,
    is_there: fn(&Status) -> bool,
    how: MigrationState,
) -> Host {
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving_at("destination", &lab.unix("stream"), false);
    let wire = unix_wire::faulty(&uri, lab.folder(), kind, Fault::Stall(PATIENCE));
    local().begin(&source, &wire);
    source
        .wait_until("the moment", PATIENCE, |status| Ok(is_there(status)))
        .expect("the source comes that far");
    destination.machine.kill();
    ends(&mut source, how);
    source
}

#[test]
fn a_destination_that_is_killed_before_the_hand_over_costs_only_the_migration() {
    if skipped_without_kvm("local, destination killed") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let is_there = |status: &Status| status.migration.status == MigrationState::Device;
    let mut source = killed_at(&lab, SectionKind::Commit, is_there, MigrationState::Failed);
    assert_eq!(status(&source).ownership.owner, Owner::Here);
    assert_eq!(whole_pass(&mut source).wrong, 0);
    hand_over(&lab, &mut source, "next");
}

#[test]
fn a_destination_that_is_killed_in_the_hand_over_leaves_the_guest_to_the_operator() {
    if skipped_without_kvm("local, destination killed in the hand-over") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let is_there = |status: &Status| status.ownership.number == 1;
    let how = MigrationState::HandedOverUnconfirmed;
    let mut source = killed_at(&lab, SectionKind::HandOver, is_there, how);
    assert_eq!(status(&source).ownership.owner, Owner::Undecided);
    tell(&source, &Command::SourceOwns);
    assert_eq!(whole_pass(&mut source).wrong, 0);
    hand_over(&lab, &mut source, "next");
}

#[test]
fn compare_hands_a_guest_over_and_checks_every_page_and_the_rule() {
    if skipped_without_kvm("compare --transport local") {
        return;
    }
    let output = lacuna(&[
        "compare",
        "--transport",
        "local",
        "--memory",
        "256M",
        "--in-use",
        "64M",
        "--freed",
        "64M",
        "--check-trace",
        "--json",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    // Hints make no difference, so there is one mode.
    let [line] = lines.lines().collect::<Vec<_>>()[..] else {
        panic!("{lines}");
    };
    let record: Record = serde_json::from_str(line).unwrap();
    assert!(record.is_exact() && record.guest_checks > 0, "{line}");
    let lent = record.lent.expect("lent memory");
    assert_eq!((lent.files, lent.bytes), (1, 256 << 20));
    assert!(record.wire_bytes < 64 << 10, "{line}");
    // Sums of the same numbers in another order.
    let difference = record.downtime.sum() - record.downtime_ms;
    assert!(difference.abs() < 1e-6, "{line}");
}
