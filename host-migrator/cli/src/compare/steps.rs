// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of a run: the two machines start, the guest gets ready, and it is migrated.

use std::ffi::OsString;
use std::path::Path;
use std::thread;
use std::time::Duration;

use host_migrator::report::stats::{MigrationReport, MigrationState};

use super::CompareError;
use super::parts::Host;
use super::plan::RunPlan;
use super::run::{GUEST_TIMEOUT, guest_failure};
use crate::certificates::Certificates;
use crate::control::Command;
use crate::machine::Status;
use crate::trace::TraceArgs;

/// How long a migration may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Starts the guest that is to be migrated.
pub(super) fn start_source(
    plan: &RunPlan,
    folder: &Path,
    name: &'static str,
    trace: &TraceArgs,
) -> Result<Host, CompareError> {
    let names = (name, "source-device");
    start(plan, folder, names, plan.run_args(), trace)
}

/// Starts the machine that it goes to, with these `args`.
pub(super) fn start_destination(
    plan: &RunPlan,
    folder: &Path,
    name: &'static str,
    args: Vec<OsString>,
    trace: &TraceArgs,
) -> Result<Host, CompareError> {
    let trace = TraceArgs {
        trace_host: 1,
        ..trace.clone()
    };
    let names = (name, "destination-device");
    start(plan, folder, names, args, &trace)
}

fn start(
    plan: &RunPlan,
    folder: &Path,
    names: (&'static str, &'static str),
    args: Vec<OsString>,
    trace: &TraceArgs,
) -> Result<Host, CompareError> {
    let program = &plan.program;
    Host::start(program, folder, names, args, &[], plan.agent_port(), trace)
}

/// Where `destination` listens.
pub(super) fn address_of(destination: &mut Host) -> Result<String, CompareError> {
    let up = |status: &Status| Ok(status.incoming.is_some());
    let listening = destination.wait_until("the destination to listen", GUEST_TIMEOUT, up)?;
    Ok(listening.incoming.unwrap_or_default())
}

/// Waits until the guest of `source` does its steady work.
pub(super) fn until_ready(source: &mut Host) -> Result<(), CompareError> {
    source.wait_until("the guest to be ready", GUEST_TIMEOUT, |status| {
        guest_failure(status.guest.as_ref())?;
        Ok(status.guest.as_ref().is_some_and(|guest| guest.ready))
    })?;
    Ok(())
}

/// Lets the guest of `source` work for a while. Returns the status then.
pub(super) fn settle(plan: &RunPlan, source: &mut Host) -> Result<Status, CompareError> {
    thread::sleep(plan.settle);
    source.wait_until("the guest's status", GUEST_TIMEOUT, |status| {
        Ok(status.guest.is_some())
    })
}

/// Begins to migrate the guest of `source` to `uri`.
pub(super) fn begin(
    plan: &RunPlan,
    source: &Host,
    uri: String,
    tls: Option<&Certificates>,
) -> Result<(), CompareError> {
    Ok(source.client()?.tell(&plan.migrate(uri, tls))?)
}

/// Waits until the migration of the guest of `source` has completed. `migrating` is called with the status now and then.
pub(super) fn until_migrated(
    source: &mut Host,
    mut migrating: impl FnMut(&Status),
) -> Result<MigrationReport, CompareError> {
    source.wait_until("the migration to end", MIGRATION_TIMEOUT, |status| {
        migrating(status);
        let migration = &status.migration;
        match migration.status {
            MigrationState::Completed => Ok(true),
            state if state.is_over() || state == MigrationState::PostcopyPaused => {
                let why = migration
                    .error_desc
                    .clone()
                    .unwrap_or_else(|| format!("{state:?}"));
                Err(CompareError::Migration(why))
            }
            _ => Ok(false),
        }
    })?;
    source.device.still_alive()?;
    Ok(source.client()?.ask(&Command::QueryReport)?)
}
