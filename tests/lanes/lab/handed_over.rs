// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of a postcopy between two hosts: the hand-over, a break that both notice, a recovery, and the end.

use host_migrator::PostcopyStart;
use host_migrator::destination::PostcopyPhase;
use host_migrator::paging::Userfaultfd;
use host_migrator::report::stats::MigrationState;
use lacuna::compare::Host;
use lacuna::control::{Command, MigrateArguments, RecoverArguments};
use lacuna::machine::{MachineState, Status};
use spec_testing::skipped;

use super::{PATIENCE, ends, skipped_without_kvm, status, tell, whole_pass};

/// Whether no guest can be handed over before its memory here. Prints why.
pub fn skipped_without_postcopy(test: &str) -> bool {
    if skipped_without_kvm(test) {
        return true;
    }
    let refused = Userfaultfd::open(false).err();
    refused.into_iter().map(skipped).count() > 0
}

/// Hands the guest of `source` over to `uri` at once. What nobody waits for is sent at `bandwidth`, so that it lasts.
///
/// # Panics
/// If the migration ends before that.
pub fn hand_over(source: &mut Host, uri: &str, bandwidth: u64) {
    let arguments = MigrateArguments {
        postcopy: Some(PostcopyStart::AtOnce),
        max_postcopy_bandwidth: Some(bandwidth),
        ..MigrateArguments::to(uri.to_owned())
    };
    tell(source, &Command::Migrate(arguments.into()));
    let found = source.wait_until("the hand-over", PATIENCE, |status| {
        let state = status.migration.status;
        Ok(state == MigrationState::PostcopyActive || state.is_over())
    });
    let found = found.expect("the source answers").migration;
    assert_eq!(found.status, MigrationState::PostcopyActive, "{found:?}");
}

/// Waits until both sides have noticed that the connection is broken. Returns how many pages are missing; `None` if all memory had come
/// before.
///
/// # Panics
/// If they do not notice, or the source does not keep to what it has handed over.
pub fn until_paused(source: &mut Host, destination: &mut Host) -> Option<u64> {
    let found = source.wait_until("the source to notice", PATIENCE, |status| {
        let state = status.migration.status;
        Ok(state == MigrationState::PostcopyPaused || state.is_over())
    });
    let found = found.expect("the source answers");
    assert_eq!(found.machine, MachineState::HandedOver);
    if found.migration.status == MigrationState::Completed {
        return None;
    }
    let why = found.migration.error_desc.unwrap_or_default();
    assert_eq!(
        found.migration.status,
        MigrationState::PostcopyPaused,
        "{why}"
    );
    assert!(!why.is_empty(), "it does not say why");
    let found = destination.wait_until("the destination to notice", PATIENCE, |status| {
        Ok(phase(status) != Some(PostcopyPhase::Active))
    });
    let postcopy = found.expect("the destination answers").postcopy;
    postcopy.map(|postcopy| postcopy.paging.missing)
}

fn phase(status: &Status) -> Option<PostcopyPhase> {
    status.postcopy.as_ref().map(|postcopy| postcopy.phase)
}

/// Has `destination` wait for the source, at an address of its own on `host`. Returns it.
pub fn listen_again(destination: &Host, host: &str) -> String {
    let command = recover(&format!("tcp:{host}:0"));
    let mut client = destination.client().expect("the destination answers");
    let answer: serde_json::Value = client.ask(&command).expect("the destination listens");
    answer["listening"].as_str().unwrap_or_default().to_owned()
}

/// Has `source` go on over a connection to `uri`. The machine refuses if nobody is there.
pub fn connect_again(source: &Host, uri: &str) -> Result<(), String> {
    let mut client = source.client().map_err(|error| error.to_string())?;
    (client.tell(&recover(uri))).map_err(|error| error.to_string())
}

fn recover(uri: &str) -> Command {
    Command::MigrateRecover(RecoverArguments { uri: uri.into() })
}

/// Waits until `source` goes on, or has ended, after having recovered `before` times.
pub fn until_recovered(source: &mut Host, before: u64) -> u64 {
    let found = source.wait_until("the source to go on", PATIENCE, |status| {
        let migration = &status.migration;
        Ok(migration.recoveries > before || migration.status.is_over())
    });
    found.expect("the source answers").migration.recoveries
}

/// Waits until all memory has come, and lets the guest check it.
///
/// # Panics
/// If a page is wrong, or a side does not end as it should.
pub fn comes_whole(source: &mut Host, destination: &mut Host) {
    ends(source, MigrationState::Completed);
    let came = destination.wait_until("all memory", PATIENCE, |status| {
        Ok(phase(status) == Some(PostcopyPhase::Completed))
    });
    came.expect("the destination answers");
    let guest = whole_pass(destination);
    assert_eq!(guest.wrong, 0, "{guest:?}");
    assert_eq!(guest.failure, None);
    assert_eq!(status(source).machine, MachineState::HandedOver);
}
