// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The commands of a postcopy, as an operator gives them: in the right state, in the wrong one, twice, and with the wrong address.

use std::net::TcpListener;

use host_migrator::report::stats::MigrationState;
use lacuna::args::CutKind;
use lacuna::compare::{Host, Line};
use lacuna::machine::MachineState;

use crate::lab::{
    BareGuest, Lab, PATIENCE, comes_whole, command, end_of, skipped_without_postcopy, status,
    until_paused,
};

fn refused(host: &Host, job: &[&str], because: &str) {
    match command(host, job) {
        Ok(()) => panic!("{job:?} was not refused"),
        Err(why) => assert!(why.contains(because), "{job:?}: {why}"),
    }
}

/// Waits until the migration of `source` is in `state`.
fn until(source: &mut Host, state: MigrationState) {
    let found = source.wait_until("the state", PATIENCE, |status| {
        let now = status.migration.status;
        Ok(now == state || now.is_over())
    });
    let found = found.unwrap().migration;
    assert_eq!(found.status, state, "{found:?}");
}

#[test]
fn the_commands_of_a_postcopy_do_what_they_say_or_say_why_not() {
    if skipped_without_postcopy("postcopy, commands") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let (mut destination, uri) = lab.receiving("destination", false);
    let first = Line::to(&uri).unwrap();
    const NOT_BROKEN: &str = "no postcopy here has a broken connection";

    // There is nothing yet.
    refused(&source, &["postcopy"], "no migration is under way");
    for host in [&source, &destination] {
        refused(host, &["recover", "tcp:127.0.0.1:1"], NOT_BROKEN);
        refused(host, &["save-half", "/nowhere/half"], NOT_BROKEN);
    }
    // Rounds go on, because the guest writes faster than the link sends, until a command comes.
    let slow = ["--max-bandwidth", "16M", "--max-postcopy-bandwidth", "8M"];
    let send = ["send", &first.address(), "--detach"];
    let on_command = ["--postcopy", "on-command"];
    command(&source, &[&send[..], &slow, &on_command].concat()).unwrap();
    until(&mut source, MigrationState::Active);
    refused(&source, &["recover", "tcp:127.0.0.1:1"], NOT_BROKEN);
    command(&source, &["postcopy"]).unwrap();
    // Twice does no harm.
    let _ = command(&source, &["postcopy"]);
    until(&mut source, MigrationState::PostcopyActive);

    // The guest has gone, and nothing has broken.
    refused(&source, &["cancel"], "has been handed over");
    refused(&source, &["quit"], "needs memory from here");
    refused(&source, &["recover", "tcp:127.0.0.1:1"], NOT_BROKEN);
    refused(
        &destination,
        &["recover", "tcp:127.0.0.1:0"],
        "has not broken",
    );
    refused(&destination, &["send", "tcp:127.0.0.1:1"], "still coming");
    first.cut(CutKind::Close);
    until_paused(&mut source, &mut destination).expect("memory is missing");

    // Wrong addresses change nothing.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp:{}", nobody.local_addr().unwrap());
    refused(&destination, &["recover", &taken], "cannot listen on");
    refused(&destination, &["recover", "nonsense"], "is not an address");
    refused(&source, &["recover", "nonsense"], "is not an address");
    drop(nobody);
    refused(&source, &["recover", &taken], "cannot connect to");
    refused(&source, &["save-half", "/nowhere/half"], "/nowhere");
    assert_eq!(
        status(&source).migration.status,
        MigrationState::PostcopyPaused
    );

    // The second wait takes the place of the first.
    command(&destination, &["recover", "tcp:127.0.0.1:0"]).unwrap();
    let old = status(&destination).incoming.unwrap();
    refused(&destination, &["save-half", "/nowhere/half"], "waited for");
    command(&destination, &["recover", "tcp:127.0.0.1:0"]).unwrap();
    let new = status(&destination).incoming.unwrap();
    assert_ne!(old, new);
    let before = status(&source).migration.recoveries;
    command(&source, &["recover", &new]).unwrap();
    let found = source.wait_until("the source to go on", PATIENCE, |status| {
        Ok(status.migration.recoveries > before || status.migration.status.is_over())
    });
    found.unwrap();
    refused(&source, &["recover", &new], NOT_BROKEN);
    comes_whole(&mut source, &mut destination);

    // It is over.
    refused(&source, &["postcopy"], "no migration is under way");
    refused(&source, &["recover", &new], NOT_BROKEN);
    refused(
        &destination,
        &["recover", &new],
        "all of the guest's memory",
    );
    refused(&destination, &["save-half", "/nowhere/half"], "lacuna send");
    command(&source, &["quit"]).unwrap();
    assert_eq!(end_of(&mut source), Some(0));
    assert_eq!(status(&destination).machine, MachineState::Running);
}

#[test]
fn a_migration_that_was_not_to_become_a_postcopy_does_not() {
    if skipped_without_postcopy("postcopy, not asked for") {
        return;
    }
    let lab = Lab::new(BareGuest::busy());
    let mut source = lab.running("source");
    let (_destination, uri) = lab.receiving("destination", false);
    let send = ["send", &uri, "--detach", "--max-bandwidth", "16M"];
    command(&source, &send).unwrap();
    until(&mut source, MigrationState::Active);
    refused(&source, &["postcopy"], "without --postcopy");
    command(&source, &["cancel"]).unwrap();
    assert_eq!(status(&source).machine, MachineState::Running);
}
