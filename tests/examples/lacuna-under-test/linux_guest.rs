// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Linux guest of the jobs, and helpers to use it.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::Connection;
use host_migrator::report::stats::MigrationState;
use host_migrator::wire::{Listener, TlsFiles};
use lacuna::compare::Host;
use lacuna::machine::{GuestStatus, MachineState};
use lacuna::trace::check_file;
use serde_json::Value;
use spec::trace::check::Verdict;

/// The error of a job.
pub type Failure = Box<dyn Error>;

/// A time limit for every step that only a hang exceeds.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// How often a state is polled.
pub const POLL: Duration = Duration::from_millis(50);

/// Does `job`, and prints its facts or its error.
pub fn perform(job: fn() -> Result<Value, Failure>) -> ExitCode {
    match job() {
        Ok(facts) => {
            println!("{facts}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

const MACHINE: &[&str] = &["--guest", "linux", "--memory", "512M"];

/// Calls `look` until it returns a value.
///
/// # Errors
/// The error of `look`, or a timeout.
pub fn wait_for<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<T, Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > end {
            return Err(format!("waited for {what} in vain").into());
        }
        thread::sleep(POLL);
    }
}

/// `lacuna run` of a guest with this `workload`.
pub fn run_job(workload: &[&str]) -> Result<Vec<OsString>, Failure> {
    let files = lacuna::nested::guest_files()?;
    let mut job: Vec<OsString> = vec!["run".into()];
    job.extend(MACHINE.iter().chain(workload).map(OsString::from));
    job.extend(["--kernel".into(), files.kernel.into()]);
    job.extend(["--initrd".into(), files.initrd.into()]);
    Ok(job)
}

/// A TCP address for `lacuna receive`.
pub const TCP: &str = "tcp:127.0.0.1:0";
/// A vsock address for it.
pub const VSOCK: &str = "vsock:any:4444";

/// Whether this kernel connects vsocks of one machine with each other.
pub fn vsock_is_here() -> bool {
    let reach = || {
        let listener = Listener::bind(&"vsock:any:4445".parse().ok()?).ok()?;
        Connection::connect(&"vsock:1:4445".parse().ok()?, PATIENCE).ok()?;
        listener.accept(Some(PATIENCE)).ok()
    };
    reach().is_some()
}

/// `lacuna receive` for that guest at `address`.
pub fn receive_job(address: &str) -> Vec<OsString> {
    let receive = ["receive", address, "--hold"];
    receive.iter().chain(MACHINE).map(OsString::from).collect()
}

/// The same, where the destination shows the certificate of `files` and asks for the source's.
pub fn receive_over_tls(address: &str, files: &TlsFiles) -> Vec<OsString> {
    let mut job = receive_job(address);
    for (flag, file) in [
        ("--tls-certificate", &files.certificate),
        ("--tls-key", &files.key),
        ("--tls-ca", &files.ca),
    ] {
        job.extend([flag.into(), file.into()]);
    }
    job
}

/// Where `destination`, on this machine, is reached.
pub fn address_of(destination: &mut Host) -> Result<String, Failure> {
    let status = destination.wait_until("the destination to listen", PATIENCE, |status| {
        Ok(status.incoming.is_some())
    })?;
    let address = status.incoming.unwrap_or_default();
    Ok(address.replace("vsock:any:", "vsock:1:"))
}

/// Waits until `source` has migrated its guest to `destination`, where it is held.
pub fn wait_until_migrated(source: &mut Host, destination: &mut Host) -> Result<(), Failure> {
    let ended = source.wait_until("the migration to end", PATIENCE, |status| {
        Ok(status.migration.status.is_over())
    })?;
    if ended.migration.status != MigrationState::Completed {
        return Err(format!("the migration failed: {:?}", ended.migration).into());
    }
    destination.wait_until("the guest to arrive", PATIENCE, |status| {
        Ok(status.machine == MachineState::Held)
    })?;
    Ok(())
}

/// The checker's verdict on the trace.
///
/// # Errors
/// The breach, and the records around it.
pub fn check_rule(trace: &Path) -> Result<String, Failure> {
    let (rule, around) = check_file(trace)?;
    match rule {
        Verdict::Holds(_) => Ok(rule.to_string()),
        _ => Err(format!("{around}{rule}").into()),
    }
}

/// Waits until the guest has checked all of its memory once more, or has found a failure.
pub fn wait_until_checked(host: &mut Host) -> Result<GuestStatus, Failure> {
    let mut passes = None;
    let status = host.wait_until("the guest to check its memory", PATIENCE, |status| {
        let guest = status.guest.as_ref();
        let now = guest.map_or(0, |guest| guest.full_passes);
        // The pass that is under way does not count.
        let enough = *passes.get_or_insert(now + 2);
        Ok(now >= enough || guest.is_some_and(|guest| guest.failure.is_some()))
    })?;
    Ok(status.guest.unwrap_or_default())
}
