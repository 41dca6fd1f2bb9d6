// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a test asks of a host, or waits for.

use lacuna::compare::{CompareError, Host};
use lacuna::control;
use lacuna::machine::{GuestStatus, Status};
use spec_testing::within;

use super::{PATIENCE, lacuna};

/// Waits until the machine's process has ended, and returns its exit status.
///
/// # Panics
/// If it does not end.
pub fn end_of(host: &mut Host) -> Option<i32> {
    within(PATIENCE, "the process to end", || {
        match host.machine.still_alive() {
            Ok(()) => None,
            Err(CompareError::Died { status, .. }) => Some(status.code()),
            Err(error) => panic!("{error}"),
        }
    })
}

/// Runs `lacuna JOB --control SOCKET` for the machine of `host`. Returns standard error if it fails.
pub fn command(host: &Host, job: &[&str]) -> Result<(), String> {
    let mut args = job.to_vec();
    args.extend(["--control", host.control.to_str().expect("a path in UTF-8")]);
    let output = lacuna(&args);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Waits until the migration away from `source` is in this round, or over.
///
/// # Panics
/// If it never is.
pub fn until_round(source: &mut Host, round: u32) {
    source
        .wait_until("the round", PATIENCE, |status| {
            let migration = &status.migration;
            Ok(migration.round >= round || migration.status.is_over())
        })
        .expect("the migration goes on");
}

/// Sends a command that must be carried out.
pub fn tell(host: &Host, command: &control::Command) {
    host.client()
        .expect("the machine answers")
        .tell(command)
        .expect("the machine obeys");
}

/// The machine's status now.
pub fn status(host: &Host) -> Status {
    host.client()
        .and_then(|mut client| Ok(client.ask(&control::Command::Status)?))
        .expect("a status")
}

/// Waits until the guest has checked all its memory once more (a pass that is under way does not count), and
/// returns what it says then.
pub fn whole_pass(host: &mut Host) -> GuestStatus {
    let passes = |status: &Status| status.guest.as_ref().map_or(0, |guest| guest.full_passes);
    let first = passes(&status(host));
    host.wait_until("the guest to check its memory", PATIENCE, |status| {
        Ok(passes(status) >= first + 2
            || status.guest.as_ref().is_some_and(|guest| guest.wrong > 0))
    })
    .expect("the guest runs")
    .guest
    .unwrap_or_default()
}

/// Lets a held guest run and checks that all its memory is right.
pub fn release_and_check(host: &mut Host) {
    tell(host, &control::Command::Cont);
    let guest = whole_pass(host);
    assert_eq!(guest.wrong, 0, "the guest found wrong stamps: {guest:?}");
    assert_eq!(guest.failure, None);
}
