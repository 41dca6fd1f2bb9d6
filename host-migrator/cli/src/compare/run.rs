// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run: start the parts, let the guest work, migrate it, and check the result.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use host_migrator::report::stats::{MigrationReport, MigrationState};
use host_migrator::report::trace::DEFAULT_SLOTS;
use host_migrator::{GuestRam, MigrationBitmap, PageSource, PageSources, RamRegion};
use indicatif::ProgressBar;
use spec::trace::check::Verdict as RuleVerdict;

use super::CompareError;
use super::file;
use super::oracle::{self, OracleError, PageStates, Verdict};
use super::parts::{AgentPort, Host};
use super::record::Record;
use crate::args::{
    CompareArgs, ComparedTransport, GuestArgs, GuestKind, MigrationArgs, WorkloadArgs,
};
use crate::certificates::{self, Certificates};
use crate::control::{Command, HintMode, MigrateArguments};
use crate::machine::{FileRange, GuestStatus, MachineState, MemoryMap, Status};
use crate::nested;
use crate::size::Size;
use crate::trace::{self, TraceArgs};

/// How long a guest may take to boot, fill and free its memory.
const GUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a migration may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);
/// How long the guest's check of all its memory may take at the destination.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the guest works before it is migrated.
const SETTLE: Duration = Duration::from_millis(300);

/// What the destination's certificate is for, in a migration with TLS.
const HOSTNAME: &str = "destination.lacuna";

/// The plan of one run.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// This program.
    program: PathBuf,
    guest: GuestArgs,
    /// The workload; its seed is this run's.
    workload: WorkloadArgs,
    migration: MigrationArgs,
    hints: HintMode,
    sources: PageSources,
    transport: ComparedTransport,
    /// The snapshot file, if one was named.
    file: Option<PathBuf>,
    tls: bool,
    check_trace: bool,
    map_rounds: bool,
    /// Kernel and initial RAM disk of a Linux guest.
    linux: Option<nested::GuestFiles>,
    #[cfg(clause_switches)]
    switch_off: Vec<String>,
}

impl RunPlan {
    /// The plans of all runs that `args` asks for.
    ///
    /// # Errors
    /// [`CompareError`] if this program or the guest's kernel cannot be found.
    pub fn all(args: &CompareArgs) -> Result<Vec<Self>, CompareError> {
        let program = std::env::current_exe().map_err(|source| CompareError::Io {
            what: "cannot find this program",
            source,
        })?;
        let linux = match args.guest.kind {
            GuestKind::Bare => None,
            GuestKind::Linux => Some(nested::guest_files()?),
        };
        let migration = &args.migration;
        (migration.multifd_compression)
            .with_level(migration.multifd_zstd_level)
            .map_err(CompareError::Compression)?;
        let sources: PageSources = args.sources.iter().copied().collect();
        if args.guest.kind == GuestKind::Bare && sources.contains(PageSource::Agent) {
            return Err(CompareError::NoAgent);
        }
        file::check(args)?;
        // Lent memory is lent whole, whatever is known of it.
        let modes = match args.transport {
            ComparedTransport::Local => &[HintMode::Off],
            ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::File => {
                &args.hints[..]
            }
        };
        let mut plans = Vec::new();
        for run in 0..u64::from(args.runs) {
            for hints in modes {
                let mut workload = args.workload.clone();
                workload.seed = workload.seed.wrapping_add(run);
                plans.push(Self {
                    program: program.clone(),
                    guest: args.guest.clone(),
                    workload,
                    migration: args.migration.clone(),
                    hints: *hints,
                    sources,
                    transport: args.transport,
                    file: args.file.clone(),
                    tls: args.tls,
                    check_trace: args.check_trace,
                    map_rounds: args.picture.is_some() || !args.json,
                    linux: linux.clone(),
                    #[cfg(clause_switches)]
                    switch_off: args.switch_off.clone(),
                });
            }
        }
        Ok(plans)
    }

    /// Makes a new trace in `folder`, if traces are checked.
    fn new_trace(&self, folder: &Path) -> Result<TraceArgs, CompareError> {
        let mut args = TraceArgs::default();
        if self.check_trace {
            let path = folder.join("trace");
            host_migrator::Trace::create(&path, DEFAULT_SLOTS).map_err(|source| {
                CompareError::Io {
                    what: "cannot make a trace",
                    source,
                }
            })?;
            args.trace = Some(path);
        }
        Ok(args)
    }

    /// The guest has a port for its agent if any mode asks the agent, because all modes migrate the same guest.
    fn agent_port(&self) -> AgentPort {
        if self.sources.contains(PageSource::Agent) {
            AgentPort::Present
        } else {
            AgentPort::Absent
        }
    }

    fn machine_args(&self) -> Vec<OsString> {
        let mut args = Vec::new();
        push(&mut args, "--guest", name_of(self.guest.kind));
        push(&mut args, "--memory", bytes(self.guest.memory));
        push(&mut args, "--vcpus", self.guest.vcpus);
        args
    }

    fn run_args(&self) -> Vec<OsString> {
        let mut args = vec!["run".into()];
        args.extend(self.machine_args());
        push(&mut args, "--in-use", bytes(self.workload.in_use));
        push(&mut args, "--freed", bytes(self.workload.freed));
        push(&mut args, "--fragment", bytes(self.workload.fragment));
        push(&mut args, "--dirty-rate", bytes(self.workload.dirty_rate));
        push(&mut args, "--churn", self.workload.churn);
        push(&mut args, "--seed", self.workload.seed);
        push(&mut args, "--hold", name_of(self.workload.hold));
        push(&mut args, "--answer", name_of(self.workload.answer));
        push(&mut args, "--append", &self.workload.append);
        if let Some(files) = &self.linux {
            args.extend(["--kernel".into(), files.kernel.clone().into()]);
            args.extend(["--initrd".into(), files.initrd.clone().into()]);
        }
        args
    }

    /// Makes certificates in `folder`, if the migration is to be encrypted.
    fn new_certificates(&self, folder: &Path) -> Result<Option<Certificates>, CompareError> {
        if !self.tls {
            return Ok(None);
        }
        let names = [HOSTNAME.to_owned()];
        Ok(Some(certificates::make(&folder.join("tls"), &names, 1)?))
    }

    /// The file that the guest goes into, if it goes into one.
    fn snapshot(&self, folder: &Path) -> Result<Option<PathBuf>, CompareError> {
        match self.transport {
            ComparedTransport::File => file::path(self.file.as_deref(), folder).map(Some),
            _ => Ok(None),
        }
    }

    fn receive_args(
        &self,
        folder: &Path,
        snapshot: Option<&Path>,
        tls: Option<&Certificates>,
    ) -> Vec<OsString> {
        let address = match self.transport {
            ComparedTransport::File => snapshot.map(file::uri).unwrap_or_default(),
            ComparedTransport::Tcp => "tcp:127.0.0.1:0".into(),
            ComparedTransport::Unix | ComparedTransport::Local => {
                let mut address = OsString::from("unix:");
                address.push(folder.join("stream"));
                address
            }
        };
        let mut args = vec!["receive".into(), address, "--hold".into()];
        args.extend(self.machine_args());
        if snapshot.is_some() {
            push(&mut args, "--direct-io", name_of(self.migration.direct_io));
        }
        if let Some(Certificates { destination, .. }) = tls {
            args.extend([
                "--tls-certificate".into(),
                destination.certificate.clone().into(),
            ]);
            args.extend(["--tls-key".into(), destination.key.clone().into()]);
            args.extend(["--tls-ca".into(), destination.ca.clone().into()]);
        }
        args
    }

    fn migrate(&self, uri: String, tls: Option<&Certificates>) -> Command {
        let files = tls.map(|made| made.source.clone());
        Command::Migrate(
            MigrateArguments {
                tls_hostname: files.is_some().then(|| HOSTNAME.to_owned()),
                tls_certificate: files.as_ref().map(|files| files.certificate.clone()),
                tls_key: files.as_ref().map(|files| files.key.clone()),
                tls_ca: files.map(|files| files.ca),
                hints: self.hints,
                sources: self.sources,
                map_rounds: self.map_rounds,
                local: self.transport == ComparedTransport::Local,
                // The oracle needs the guest as it was saved.
                hold: self.transport == ComparedTransport::File,
                #[cfg(clause_switches)]
                switched_off: self.switch_off.clone(),
                ..self.migration.to(uri)
            }
            .into(),
        )
    }
}

impl fmt::Display for RunPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hints {}, seed {}", self.hints, self.workload.seed)
    }
}

/// Carries `plan` out.
///
/// # Errors
/// [`CompareError`] if a part fails. Wrong pages are not an error here: the record counts them.
pub fn run_once(plan: &RunPlan, progress: &ProgressBar) -> Result<Record, CompareError> {
    let folder = tempfile::Builder::new()
        .prefix("lacuna-")
        .tempdir()
        .map_err(|source| CompareError::Io {
            what: "cannot make a folder for the sockets",
            source,
        })?;
    let step = |what: &str| progress.set_message(format!("{plan}: {what}"));

    step("guest fills its memory");
    let (program, place) = (&plan.program, folder.path());
    let trace = plan.new_trace(place)?;
    let tls = plan.new_certificates(place)?;
    let mut source = Host::start(
        program,
        place,
        ("source", "source-device"),
        plan.run_args(),
        &[],
        plan.agent_port(),
        &trace,
    )?;
    let snapshot = plan.snapshot(place)?;
    let destination_trace = TraceArgs {
        trace_host: 1,
        ..trace.clone()
    };
    let start_destination = || {
        Host::start(
            program,
            place,
            ("destination", "destination-device"),
            plan.receive_args(place, snapshot.as_deref(), tls.as_ref()),
            &[],
            plan.agent_port(),
            &destination_trace,
        )
    };
    // A file must be there before a guest is restored from it.
    let mut waiting = match &snapshot {
        None => Some(start_destination()?),
        Some(_) => None,
    };
    let uri = match (&mut waiting, &snapshot) {
        (Some(destination), _) => {
            let up = |status: &Status| Ok(status.incoming.is_some());
            let listening =
                destination.wait_until("the destination to listen", GUEST_TIMEOUT, up)?;
            listening.incoming.unwrap_or_default()
        }
        (None, path) => {
            let uri = path.as_deref().map(file::uri).unwrap_or_default();
            uri.to_string_lossy().into_owned()
        }
    };
    source.wait_until("the guest to be ready", GUEST_TIMEOUT, |status| {
        guest_failure(status.guest.as_ref())?;
        Ok(status.guest.as_ref().is_some_and(|guest| guest.ready))
    })?;
    thread::sleep(SETTLE);
    let before = source.wait_until("the guest's status", GUEST_TIMEOUT, |status| {
        Ok(status.guest.is_some())
    })?;

    let mut client = source.client()?;
    client.tell(&plan.migrate(uri, tls.as_ref()))?;
    source.wait_until("the migration to end", MIGRATION_TIMEOUT, |status| {
        let migration = &status.migration;
        step(&format!("migrating, round {}", migration.round));
        match migration.status {
            MigrationState::Completed => Ok(true),
            state if state.is_over() => {
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
    let report: MigrationReport = client.ask(&Command::QueryReport)?;
    let restoring = Instant::now();
    let mut destination = match waiting {
        Some(destination) => destination,
        None => start_destination()?,
    };
    destination.wait_until("the guest to arrive", GUEST_TIMEOUT, |status| {
        Ok(status.machine == MachineState::Held)
    })?;
    let restore_ms = restoring.elapsed().as_secs_f64() * 1000.0;
    let figures = (snapshot.as_deref())
        .map(|path| file::figures(path, restore_ms))
        .transpose()?;

    step("comparing every page");
    let verdict = match plan.transport {
        ComparedTransport::Local => ask_about_lent(plan.guest.kind, &source, &destination)?,
        ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::File => {
            ask_oracle(plan.guest.kind, &source, &destination)?
        }
    };
    for page in &verdict.examples {
        log::error!(
            "{plan}: page {:#x} is wrong at the destination: {:?}",
            page.pfn,
            page.why
        );
    }

    step("guest checks its memory at the destination");
    let checked = check_at_destination(plan, &mut destination)?;
    let events = trace.trace.as_deref().map(check_trace).transpose()?;
    let in_use_bytes = before.guest.as_ref().map_or(0, |guest| guest.in_use_bytes);
    Ok(Record {
        trace_events: events,
        file_bytes: figures.map(|file| file.bytes),
        file_allocated_bytes: figures.map(|file| file.allocated_bytes),
        save_ms: figures.map(|_| report.total_ms),
        restore_ms: figures.map(|file| file.restore_ms),
        ..record(plan, in_use_bytes, &report, &verdict, &checked)
    })
}

/// Checks the trace of all parts against the rule. Returns the number of events.
fn check_trace(path: &Path) -> Result<u64, CompareError> {
    let (verdict, around) = trace::check_file(path)?;
    match verdict {
        RuleVerdict::Holds(summary) => Ok(summary.events),
        other => Err(CompareError::Rule(format!("{other}\n{around}"))),
    }
}

/// Compares the memory of the two machines, whose guests are stopped.
///
/// # Errors
/// [`CompareError`] if their memory cannot be read.
pub fn ask_oracle(
    guest: GuestKind,
    source: &Host,
    destination: &Host,
) -> Result<Verdict, CompareError> {
    let (source_ram, skipped) = memory_of(source)?;
    let (destination_ram, _) = memory_of(destination)?;
    let truth = match guest {
        GuestKind::Bare => Some(PageStates::read(&source_ram)?),
        GuestKind::Linux => None,
    };
    Ok(oracle::compare(
        &source_ram,
        &destination_ram,
        &skipped,
        truth.as_ref(),
    )?)
}

/// Makes sure that both machines, whose guests are stopped, have the same memory files, and compares every page in use with the
/// guest's own account of it.
///
/// # Errors
/// [`CompareError`] if the files differ or cannot be read.
pub fn ask_about_lent(
    guest: GuestKind,
    source: &Host,
    destination: &Host,
) -> Result<Verdict, CompareError> {
    if files_of(source)? != files_of(destination)? {
        let why = "the destination has other memory files than the source";
        return Err(CompareError::Migration(why.into()));
    }
    let (ram, _) = memory_of(destination)?;
    let truth = match guest {
        GuestKind::Bare => Some(PageStates::read(&ram)?),
        GuestKind::Linux => None,
    };
    Ok(oracle::check_lent(&ram, truth.as_ref())?)
}

/// Which files hold the guest memory of `host`, and which parts of them.
fn files_of(host: &Host) -> Result<Vec<(u64, u64, u64, u64)>, CompareError> {
    let map: MemoryMap = host.client()?.ask(&Command::QueryMemory)?;
    let pid = host.machine.pid();
    let place = |range: &FileRange| {
        let file = fs::metadata(format!("/proc/{pid}/fd/{}", range.fd));
        file.map(|file| (file.dev(), file.ino(), range.offset, range.len))
    };
    let places = map.regions.iter().map(place).collect::<Result<_, _>>();
    places.map_err(|source| CompareError::Io {
        what: "cannot look at a machine's memory files",
        source,
    })
}

/// Maps the guest memory of `host`, whose guest may run. Returns with it the pages whose latest content the last
/// migration away from `host` did not send because of a hint.
///
/// # Errors
/// [`CompareError`] if it cannot be mapped.
pub fn memory_of(host: &Host) -> Result<(GuestRam, MigrationBitmap), CompareError> {
    let map: MemoryMap = host.client()?.ask(&Command::QueryMemory)?;
    let ram = open_ram(host.machine.pid(), &map.regions)?;
    let skipped = MigrationBitmap::new(ram.bitmap_pages());
    for (index, word) in map.skipped.iter().enumerate().take(skipped.word_count()) {
        skipped.merge(index, *word);
    }
    Ok((ram, skipped))
}

/// Maps another process's guest memory.
fn open_ram(pid: u32, regions: &[FileRange]) -> Result<GuestRam, CompareError> {
    let open = |range: &FileRange| {
        let path = format!("/proc/{pid}/fd/{}", range.fd);
        let file = File::options().read(true).write(true).open(path);
        file.map(|file| RamRegion {
            gpa: range.gpa,
            len: range.len,
            file,
            offset: range.offset,
        })
    };
    let regions = regions
        .iter()
        .map(open)
        .collect::<Result<_, _>>()
        .map_err(|source| CompareError::Io {
            what: "cannot open a machine's memory",
            source,
        })?;
    Ok(GuestRam::map(regions).map_err(OracleError::from)?)
}

/// Lets the guest run at the destination until it has checked all of its memory once.
fn check_at_destination(
    plan: &RunPlan,
    destination: &mut Host,
) -> Result<GuestStatus, CompareError> {
    let passes = |status: Option<&GuestStatus>| status.map_or(0, |guest| guest.full_passes);
    let mut client = destination.client()?;
    let arrived: Status = client.ask(&Command::Status)?;
    let first = passes(arrived.guest.as_ref());
    client.tell(&Command::Cont)?;
    // The pass that was under way when the guest was stopped does not count. After two more passes one was whole.
    let status =
        destination.wait_until("the guest to check its memory", CHECK_TIMEOUT, |status| {
            let guest = status.guest.as_ref();
            #[cfg(clause_switches)]
            if !plan.switch_off.is_empty() && guest.is_some_and(|guest| guest.wrong > 0) {
                return Ok(true);
            }
            if plan.workload.in_use.0 == 0 {
                return Ok(true);
            }
            guest_failure(guest)?;
            Ok(passes(guest) >= first + 2)
        })?;
    Ok(status.guest.unwrap_or_default())
}

fn guest_failure(guest: Option<&GuestStatus>) -> Result<(), CompareError> {
    match guest.and_then(|guest| guest.failure.clone()) {
        Some(reason) => Err(CompareError::Guest(reason)),
        None => Ok(()),
    }
}

fn record(
    plan: &RunPlan,
    in_use_bytes: u64,
    report: &MigrationReport,
    verdict: &Verdict,
    checked: &GuestStatus,
) -> Record {
    let totals = &report.totals;
    Record {
        guest: name_of(plan.guest.kind),
        memory_bytes: plan.guest.memory.0,
        in_use_bytes,
        hints: plan.hints,
        sources: plan.hints.sources(plan.sources),
        seed: plan.workload.seed,
        vcpus: plan.guest.vcpus,
        transport: name_of(plan.transport),
        lent: report.lent,
        tls: report.tls,
        channels: report.channels,
        bytes_by_channel: report.bytes_by_channel.clone(),
        compression: plan.migration.multifd_compression,
        compressed_pages: report.compression.as_ref().map_or(0, |used| used.pages),
        compression_rate: (report.compression.as_ref()).and_then(|used| used.compression_rate),
        wire_bytes: report.wire_bytes,
        file_bytes: None,
        file_allocated_bytes: None,
        save_ms: None,
        restore_ms: None,
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        downtime: report.downtime.clone(),
        expected_downtime_ms: report.expected_downtime_ms,
        rounds: totals.round.into(),
        iteration_count: report.iteration_count,
        dirty_sync_count: report.dirty_sync_count,
        throttle_max_percent: report.throttle_max_percent,
        decisions: report.decisions.clone(),
        pages_sent: totals.pages_sent,
        pages_zero: totals.pages_zero,
        pages_hinted: totals.pages_hinted,
        pages_by_source: totals.pages_by_source,
        pages_hinted_too_late: totals.pages_hinted_too_late,
        pages_hinted_too_late_by_source: totals.too_late_by_source,
        pages_back_dirty_by_source: totals.back_dirty_by_source,
        pages_resent: totals.pages_resent,
        pages_written_before_copy: totals.pages_written_before_copy,
        pages_compared: verdict.pages_compared,
        pages_wrong: verdict.pages_wrong,
        pages_given_up: verdict.pages_given_up,
        guest_checks: checked.checks,
        guest_wrong: checked.wrong,
        trace_events: None,
        pages_hinted_by_round: report
            .rounds
            .iter()
            .map(|round| round.pages_hinted)
            .collect(),
        maps: report.maps.clone(),
    }
}

fn push(args: &mut Vec<OsString>, flag: &str, value: impl ToString) {
    args.extend([OsString::from(flag), value.to_string().into()]);
}

/// A size as it is written on the command line, exactly.
fn bytes(size: Size) -> String {
    format!("{}B", size.0)
}

/// A value as it is written on the command line.
pub(super) fn name_of(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
