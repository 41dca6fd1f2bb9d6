// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The small jobs: commands to a machine that runs in another process, and `generate`.

use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::CommandFactory;
use host_migrator::destination::PostcopyStatus;
use host_migrator::paging::PagingStatus;
use host_migrator::report::stats::{
    CompressionStatus, MigrationReport, MigrationState, MigrationStatus,
};
use host_migrator::snapshot::TargetError;
use host_migrator::wire::Address;
use host_migrator::{Ownership, SnapshotTarget};
use indicatif::{ProgressBar, ProgressStyle};
use spec::PAGE_SIZE;
use spec_sockets::inherited;
use vhost_device_balloon::daemon::signals::EndSignals;

use crate::args::{
    Cli, Generated, ProgramName, QuitArgs, RecoverArgs, SaveHalfArgs, SendArgs, StatusArgs, Target,
    snapshot_at,
};
use crate::certificates::{self, CertificateError};
use crate::control::{
    Client, ClientError, Command, GIVEN, HalfSaved, MigrateArguments, QuitArguments,
    RecoverArguments, SaveHalfArguments,
};
use crate::machine::{MachineState, Status};
use crate::size::Size;
use crate::waits;

/// How often the state of a migration is polled while its progress is shown.
const POLL: Duration = Duration::from_millis(50);

/// The exit status of a command that a signal ended, as shells use it for Ctrl-C.
const INTERRUPTED: i32 = 130;

/// A job that could not be done.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The machine refused or does not answer.
    #[error(transparent)]
    Control(#[from] ClientError),
    /// Certificates could not be made.
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    /// The migration did not complete.
    #[error("the migration ended as {state}: {why}")]
    Migration {
        /// How it ended.
        state: String,
        /// Why.
        why: String,
    },
    /// The dirty rate was not measured to the end.
    #[error("the dirty rate is not known: {0}")]
    DirtyRate(String),
    /// The name of a file.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Files or standard output.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// `lacuna send`: asks the machine to migrate and, unless told otherwise, waits for the end.
///
/// # Errors
/// [`JobError`] if the migration cannot be started or does not complete.
pub fn send(args: &SendArgs) -> Result<(), JobError> {
    let (uri, given) = target(&args.address)?;
    // The machine reads the files, and may have another working folder.
    let absolute = |path: &Option<PathBuf>| {
        (path.as_ref().map(std::path::absolute).transpose()).map_err(|source| JobError::Io {
            what: "cannot find the current folder",
            source,
        })
    };
    let tls_certificate = absolute(&args.tls.tls_certificate)?;
    let (tls_key, tls_ca) = (absolute(&args.tls.tls_key)?, absolute(&args.tls.tls_ca)?);
    let mut client = Client::connect(&args.control)?;
    say_what_goes_on(&args.control)?;
    let migrate = Command::Migrate(
        MigrateArguments {
            hints: args.hints,
            sources: args.sources.iter().copied().collect(),
            local: args.local,
            hold: args.hold,
            tls_certificate,
            tls_key,
            tls_ca,
            tls_hostname: args.tls_hostname.clone(),
            #[cfg(clause_switches)]
            switched_off: args.switch_off.clone(),
            ..args.migration.to(uri)
        }
        .into(),
    );
    client.ask_with::<serde_json::Value>(&migrate, &given)?;
    // The machine has copies. If this process kept its own, the destination would not see the end of the connection.
    drop(given);
    if args.detach {
        return Ok(());
    }
    let migration = watch(&mut client)?;
    if migration.status != MigrationState::Completed {
        let why = migration
            .error_desc
            .unwrap_or_else(|| "no reason given".into());
        return Err(JobError::Migration {
            state: name_of(migration.status),
            why,
        });
    }
    let report: MigrationReport = client.ask(&Command::QueryReport)?;
    if args.json {
        return print(&serde_json::to_string_pretty(&report).unwrap_or_default());
    }
    if let Some(lent) = report.lent {
        return print(&format!(
            "handed over in {:.0} ms, downtime {:.1} ms: {} of memory in {} file(s), {} on the wire",
            report.total_ms,
            report.downtime_ms,
            Size(lent.bytes),
            lent.files,
            Size(report.wire_bytes)
        ));
    }
    if let Target::File(file) = &args.address {
        return print(&format!(
            "saved to {} in {:.0} ms, downtime {:.1} ms, {} of pages written in {} rounds; the guest {}",
            file.path.display(),
            report.total_ms,
            report.downtime_ms,
            Size(report.wire_bytes),
            report.totals.round,
            if args.hold { "is held" } else { "runs on" }
        ));
    }
    print(&format!(
        "migrated in {:.0} ms, downtime {:.1} ms, {} on the wire in {} rounds{}",
        report.total_ms,
        report.downtime_ms,
        Size(report.wire_bytes),
        report.totals.round,
        (report.compression.as_ref()).map_or_else(String::new, |used| format!("; {}", saved(used)))
    ))
}

/// How the machine is told of `target`: sockets that this process was started with are given to it.
fn target(target: &Target) -> Result<(String, Vec<OwnedFd>), JobError> {
    let numbers = match target {
        Target::Address(Address::Fd(numbers)) => numbers,
        Target::Address(address) => return Ok((address.to_string(), Vec::new())),
        Target::File(file) => return Ok((absolute(file)?.to_string(), Vec::new())),
    };
    let given = inherited::stream_sockets(numbers).map_err(|source| JobError::Io {
        what: "cannot take a descriptor of this command",
        source,
    })?;
    Ok((GIVEN.into(), given))
}

/// `file` by a name that means the same to the machine, which writes it and may have another working folder.
fn absolute(file: &SnapshotTarget) -> Result<SnapshotTarget, JobError> {
    let path = std::path::absolute(&file.path).map_err(|source| JobError::Io {
        what: "cannot find the current folder",
        source,
    })?;
    let offset = file.offset;
    Ok(SnapshotTarget { path, offset })
}

/// What compression has done, in a few words.
fn saved(used: &CompressionStatus) -> String {
    let before = Size(used.pages * PAGE_SIZE);
    let after = Size(used.compressed_size);
    format!("{} made {after} of {before}", used.method)
}

/// On Ctrl-C, says that only this command ends and the migration goes on.
fn say_what_goes_on(control: &Path) -> Result<(), JobError> {
    let failed = |source| JobError::Io {
        what: "cannot wait for signals",
        source,
    };
    let signals = EndSignals::register().map_err(failed)?;
    let control = control.display().to_string();
    let thread = thread::Builder::new().name("signals".into());
    let spawned = thread.spawn(move || {
        let name = signals.wait();
        // Nothing can be done if standard error is closed.
        let _ = writeln!(
            io::stderr(),
            "\nlacuna: {name} has ended this command, not the migration: it goes on. \
             `lacuna status --control {control}` shows it, `lacuna cancel --control {control}` cancels it"
        );
        std::process::exit(INTERRUPTED);
    });
    spawned.map(|_| ()).map_err(failed)
}

/// Shows the progress of a migration until it is over.
fn watch(client: &mut Client) -> Result<MigrationStatus, JobError> {
    let bar = if io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let style = ProgressStyle::with_template("[{elapsed_precise}] {bar:32} {msg}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    let mut said = false;
    loop {
        let status: Status = client.ask(&Command::Status)?;
        let migration = status.migration;
        bar.set_length(migration.ram.total);
        bar.set_position(migration.ram.total.saturating_sub(migration.ram.remaining));
        bar.set_message(format!(
            "round {}, {} sent, {} to go",
            migration.round,
            Size(migration.ram.transferred),
            Size(migration.ram.remaining)
        ));
        if migration.status == MigrationState::PostcopyPaused && !said {
            let why = migration.error_desc.as_deref().unwrap_or("no reason given");
            bar.suspend(|| eprintln!("lacuna: {why}; go on with `lacuna recover` on both sides"));
        }
        said = migration.status == MigrationState::PostcopyPaused;
        if migration.status.is_over() {
            bar.finish_and_clear();
            return Ok(migration);
        }
        thread::sleep(POLL);
    }
}

/// `lacuna status`
///
/// # Errors
/// [`JobError`] if the machine does not answer.
pub fn status(args: &StatusArgs) -> Result<(), JobError> {
    let status: Status = Client::connect(&args.control)?.ask(&Command::Status)?;
    if args.json {
        return print(&serde_json::to_string_pretty(&status).unwrap_or_default());
    }
    let mut lines = vec![format!("machine    {}", name_of(status.machine))];
    let Ownership {
        session,
        number,
        owner,
    } = status.ownership;
    lines.push(format!(
        "owner      {owner}; session {session}, hand-over {number}"
    ));
    if status.machine == MachineState::Undecided {
        let what =
            "look at the other side, then see `lacuna cont --help` and `lacuna resume --help`";
        lines.push(format!("           {what}"));
    }
    if let Some(lost) = &status.balloon_lost {
        lines.push(format!("balloon    lost: {lost}"));
    }
    if let Some(incoming) = &status.incoming {
        let tls = if status.incoming_tls {
            ", with TLS"
        } else {
            ""
        };
        lines.push(format!("listening  {incoming}{tls}"));
    }
    if let Some(guest) = &status.guest {
        lines.push(format!(
            "guest      {} in use, {} checks, {} wrong",
            Size(guest.in_use_bytes),
            guest.checks,
            guest.wrong
        ));
    }
    if let Some(restore) = &status.restore {
        lines.push(format!(
            "restored   {} in use, first instruction after {:.1} ms",
            Size(restore.pages * PAGE_SIZE),
            restore.first_instruction_ms
        ));
        lines.extend(restore.lazy.iter().map(faults));
    }
    lines.extend((status.postcopy.iter()).flat_map(postcopy));
    lines.extend(waits::of_machine(&status).map(|words| format!("           {words}")));
    let failure = status.guest.as_ref().and_then(|g| g.failure.as_ref());
    lines.extend(failure.map(|why| format!("           it has ended: {why}")));
    let migration = &status.migration;
    if migration.status != MigrationState::None {
        lines.push(format!(
            "migration  {}{}, round {}, {} sent, {} to go, {} ms",
            name_of(migration.status),
            if migration.tls { ", with TLS" } else { "" },
            migration.round,
            Size(migration.ram.transferred),
            Size(migration.ram.remaining),
            migration.total_time
        ));
        if migration.cpu_throttle_percentage > 0 {
            let percent = migration.cpu_throttle_percentage;
            lines.push(format!("           the guest is throttled by {percent} %"));
        }
        if migration.ram.lent_bytes > 0 {
            let lent = Size(migration.ram.lent_bytes);
            lines.push(format!(
                "           {lent} of memory lent to the destination"
            ));
        }
        lines.extend(
            (migration.compression.iter()).map(|used| format!("           {}", saved(used))),
        );
        lines.extend(
            migration
                .error_desc
                .iter()
                .map(|error| format!("           {error}")),
        );
    }
    print(&lines.join("\n"))
}

/// What has come of a guest's memory, and how long its faults took.
fn faults(paging: &PagingStatus) -> String {
    let time = |us: Option<f64>| us.map_or("-".into(), |us| format!("{us:.0} us"));
    format!(
        "           {} missing, {} faults, half of them in {}, 99 of 100 in {}",
        Size(paging.missing * PAGE_SIZE),
        paging.faults,
        time(paging.fault_p50_us),
        time(paging.fault_p99_us)
    )
}

/// The lines about a guest that was handed over to this machine before its memory.
fn postcopy(status: &PostcopyStatus) -> Vec<String> {
    let mut lines = vec![
        format!(
            "postcopy   {}, {} recoveries",
            name_of(status.phase),
            status.recoveries
        ),
        faults(&status.paging),
    ];
    let file = status.file.iter().map(|file| file.display());
    lines.extend(file.map(|file| format!("           from {file}, which the source has left")));
    lines.extend(status.broken.iter().map(|why| format!("           {why}")));
    lines.extend(status.paging.waiting_for.iter().map(|waiting| {
        let address = waiting.page * PAGE_SIZE;
        format!(
            "           somebody has waited {} ms for the page at {address:#x}",
            waiting.ms
        )
    }));
    lines
}

/// How long a machine may take to end: a large memory is not given back at once.
const END: Duration = Duration::from_secs(60);

/// `lacuna quit`: returns when the machine's process has ended.
///
/// # Errors
/// [`JobError`] if the machine refuses, does not answer, or goes on.
pub fn quit(args: &QuitArgs) -> Result<(), JobError> {
    let mut client = Client::connect(&args.control)?;
    let end_guest = args.end_guest;
    client.tell(&Command::Quit(Some(QuitArguments { end_guest })))?;
    Ok(client.wait_for_end(END)?)
}

/// `lacuna recover`: prints where the destination listens.
///
/// # Errors
/// [`JobError`] if the machine refuses or does not answer.
pub fn recover(args: &RecoverArgs) -> Result<(), JobError> {
    let uri = match SnapshotTarget::is_meant(&args.address) {
        true => absolute(&snapshot_at(&args.address)?)?.to_string(),
        false => args.address.clone(),
    };
    let command = Command::MigrateRecover(RecoverArguments { uri });
    let answer: serde_json::Value = Client::connect(&args.control)?.ask(&command)?;
    match answer.get("listening").and_then(serde_json::Value::as_str) {
        Some(address) => print(&format!("listening  {address}")),
        None => Ok(()),
    }
}

/// `lacuna save-half`: prints what was saved.
///
/// # Errors
/// [`JobError`] if the machine refuses or does not answer.
pub fn save_half(args: &SaveHalfArgs) -> Result<(), JobError> {
    let target = absolute(&snapshot_at(&args.file)?)?;
    let uri = target.to_string();
    let command = Command::SaveHalf(SaveHalfArguments { uri });
    let mut client = Client::connect(&args.control)?.without_deadline()?;
    let saved: HalfSaved = client.ask(&command)?;
    if args.json {
        return print(&serde_json::to_string_pretty(&saved).unwrap_or_default());
    }
    print(&format!(
        "saved the {}'s half into {}: {} of content",
        saved.side,
        target.path.display(),
        Size(saved.pages * PAGE_SIZE)
    ))
}

/// `lacuna postcopy`, `cancel`, `cont` and `resume`: one command whose answer has no value.
///
/// # Errors
/// [`JobError`] if the machine refuses or does not answer.
pub fn tell(control: &Path, command: &Command) -> Result<(), JobError> {
    Ok(Client::connect(control)?.tell(command)?)
}

/// `lacuna generate`
///
/// # Errors
/// [`JobError`] if the files cannot be made or written.
pub fn generate(what: &Generated) -> Result<(), JobError> {
    match what {
        Generated::Man { folder } => {
            let write = || {
                std::fs::create_dir_all(folder)?;
                clap_mangen::generate_to(Cli::command(), folder)?;
                clap_mangen::generate_to(vhost_device_balloon::Args::command(), folder)
            };
            write().map_err(|source| JobError::Io {
                what: "cannot write the manual pages",
                source,
            })
        }
        Generated::Certificates {
            folder,
            names,
            days,
        } => certificates::make(folder, names, *days)
            .map(|_| ())
            .map_err(JobError::from),
        Generated::Completions { shell, program } => {
            let mut command = match program {
                ProgramName::Lacuna => Cli::command(),
                ProgramName::VhostDeviceBalloon => vhost_device_balloon::Args::command(),
            };
            let name = command.get_name().to_owned();
            // Into memory first: the generator panics if standard output is closed.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, name, &mut script);
            let result = io::stdout().write_all(&script);
            result.map_err(|source| JobError::Io {
                what: "cannot write the completions",
                source,
            })
        }
    }
}

/// A state's name as in JSON.
pub(crate) fn name_of(state: impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "unknown".into(),
    }
}

/// Prints `text` and the end of a line.
pub(crate) fn print(text: &str) -> Result<(), JobError> {
    writeln!(io::stdout(), "{text}").map_err(|source| JobError::Io {
        what: "cannot write the answer",
        source,
    })
}
