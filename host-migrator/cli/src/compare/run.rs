// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One run: start the parts, let the guest work, migrate it, and check the result.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use host_migrator::report::stats::MigrationReport;
use host_migrator::{GuestRam, MigrationBitmap, RamRegion, TimedEvent};
use indicatif::ProgressBar;
use spec::trace::check::Verdict as RuleVerdict;

use super::CompareError;
use super::course::Course;
use super::early;
use super::file;
use super::gaps::{GuestGaps, Moments, noticed_by};
use super::kill;
use super::lazy;
use super::oracle::{self, OracleError, PageStates, Verdict};
use super::parts::Host;
use super::plan::{RunPlan, name_of};
use super::record::Record;
use super::steps;
use crate::args::{ComparedTransport, GuestKind, RestoreKind};
use crate::control::{Client, Command, EventPage, EventsArguments};
use crate::machine::{FileRange, GuestStatus, MachineState, MemoryMap, Status};
use crate::trace;

/// How long a guest may take to boot, fill and free its memory.
pub(super) const GUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the guest's check of all its memory may take at the destination.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

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
    let place = folder.path();
    let trace = plan.new_trace(place)?;
    let tls = plan.new_certificates(place)?;
    let snapshot = plan.snapshot(place)?;
    let mut source = steps::start_source(plan, place, "source", &trace)?;
    // The oracle needs the guest as it arrives.
    let start_destination = || {
        let args = plan.receive_args(place, snapshot.as_deref(), tls.as_ref(), true);
        steps::start_destination(plan, place, "destination", args, &trace)
    };
    // A file must be there before a guest is restored from it.
    let mut waiting = match &snapshot {
        None => Some(start_destination()?),
        Some(_) => None,
    };
    let uri = match (&mut waiting, &snapshot) {
        (Some(destination), _) => steps::address_of(destination)?,
        (None, path) => {
            let uri = path.as_deref().map(file::uri).unwrap_or_default();
            uri.to_string_lossy().into_owned()
        }
    };
    steps::until_ready(&mut source)?;
    // Only the bare guest counts its gaps and times its reads.
    let noticed = |host: &Host| match plan.guest.kind {
        GuestKind::Bare => noticed_by(host, plan.guest.vcpus).map(Some),
        GuestKind::Linux => Ok(None),
    };
    let ready = noticed(&source)?;
    let before = steps::settle(plan, &mut source)?;

    let asked = noticed(&source)?;
    steps::begin(plan, &source, uri, tls.as_ref())?;
    let longest_gap = |status: &Status| status.guest.as_ref().map_or(0, |it| it.longest_gap);
    let mut longest = 0;
    let mut course = Course::default();
    let report = steps::until_migrated(&mut source, |status| {
        longest = longest.max(longest_gap(status));
        course.look(&status.migration);
        step(&format!("migrating, round {}", status.migration.round));
    })?;
    course.events = events_of(&mut source.client()?)?;
    let restoring = Instant::now();
    let mut destination = match waiting {
        Some(destination) => destination,
        None => start_destination()?,
    };
    let arrived = destination.wait_until("the guest to arrive", GUEST_TIMEOUT, |status| {
        let lazy = status.restore.as_ref().and_then(|it| it.lazy.as_ref());
        let early = status.postcopy.as_ref().map(|postcopy| &postcopy.paging);
        let all_is_here = lazy.or(early).is_none_or(|paging| paging.missing == 0);
        Ok(status.machine == MachineState::Held && all_is_here)
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
    let stopped = match plan.transport {
        // The memory that is the destination's now; its guest does not run yet.
        ComparedTransport::Local => noticed(&destination)?,
        ComparedTransport::Tcp | ComparedTransport::Unix | ComparedTransport::File => {
            noticed(&source)?
        }
    };
    let mut checked = check_at_destination(plan, &mut destination)?;
    let moments = ready.zip(asked).zip(stopped.zip(noticed(&destination)?));
    let moments = moments.map(|((ready, asked), (stopped, checked))| Moments {
        ready,
        asked,
        stopped,
        checked,
    });
    let events = trace.trace.as_deref().map(check_trace).transpose()?;
    // Their memory may be needed for others.
    drop((source, destination));
    let mut restored = arrived.restore;
    let mut lazily = None;
    if let (RestoreKind::Lazy, Some(path)) = (plan.restore, &snapshot) {
        step("guest checks its memory before it was read");
        let job = lazy::run(plan, place, path, arrived.guest.as_ref())?;
        for of_guest in &job.guests {
            checked.checks += of_guest.checks;
            checked.wrong += of_guest.wrong;
        }
        restored.clone_from(&job.restore);
        lazily = Some(job);
    }
    let live = match plan.migration.postcopy {
        None => None,
        Some(_) => {
            step("guest runs at the destination before its memory");
            Some(early::run(plan, place)?)
        }
    };
    if let Some(live) = &live {
        checked.checks += live.guest.checks;
        checked.wrong += live.guest.wrong;
    }
    let killed = match plan.kill {
        None => None,
        Some(kill) => {
            step("a machine is killed");
            let (killed, guest) = kill::run(plan, place, kill)?;
            checked.checks += guest.checks;
            checked.wrong += guest.wrong;
            Some(killed)
        }
    };
    let paging = restored.as_ref().and_then(|restore| restore.lazy.as_ref());
    let paging = paging.or(live.as_ref().map(|live| &live.paging));
    let report = live.as_ref().map_or(&report, |live| &live.report);
    let in_use_bytes = before.guest.as_ref().map_or(0, |guest| guest.in_use_bytes);
    Ok(Record {
        course,
        killed,
        trace_events: events,
        guest_gap_ms: Some(moments.as_ref().map_or_else(
            || GuestGaps::of_longest(longest_gap(&before), longest),
            Moments::gaps,
        )),
        guest_read_us: moments.as_ref().map(Moments::reads),
        file_bytes: figures.map(|file| file.bytes),
        file_allocated_bytes: figures.map(|file| file.allocated_bytes),
        save_ms: figures.map(|_| report.total_ms),
        restore_ms: figures.map(|file| file.restore_ms),
        first_instruction_ms: restored.as_ref().map(|it| it.first_instruction_ms),
        postcopy_zero_answers: live.as_ref().map(|live| live.paging.faults_zero),
        faults: paging.map(|paging| paging.faults),
        fault_p50_us: paging.and_then(|paging| paging.fault_p50_us),
        fault_p99_us: paging.and_then(|paging| paging.fault_p99_us),
        fault_waits: paging.map_or_else(Vec::new, |paging| paging.waits.clone()),
        job_lazy_ms: lazily.as_ref().and_then(|job| job.lazy_ms),
        job_eager_ms: lazily.as_ref().and_then(|job| job.eager_ms),
        idle_resident_bytes: lazily.as_ref().and_then(|job| job.idle_resident_bytes),
        ..record(plan, in_use_bytes, report, &verdict, &checked)
    })
}

/// All that the machine still knows of what happened in its last migration.
fn events_of(client: &mut Client) -> Result<Vec<TimedEvent>, CompareError> {
    let (mut all, mut known) = (Vec::new(), EventsArguments::default());
    loop {
        let page: EventPage = client.ask(&Command::QueryEvents(known))?;
        known = page.known(known);
        let is_last = page.events.len() < EventPage::MOST;
        all.extend(page.events);
        if is_last {
            return Ok(all);
        }
    }
}

/// Checks the trace of all parts against the rule. Returns the number of events.
pub(super) fn check_trace(path: &Path) -> Result<u64, CompareError> {
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
    let files = look_at_files(host)?.into_iter();
    let place =
        |(range, file): (FileRange, Metadata)| (file.dev(), file.ino(), range.offset, range.len);
    Ok(files.map(place).collect())
}

/// Bytes of the guest's memory of `host` that are there, and not missing or never touched.
pub(super) fn resident_bytes(host: &Host) -> Result<u64, CompareError> {
    let mut files = look_at_files(host)?;
    // Two regions may lie in one file.
    files.sort_by_key(|(_, file)| (file.dev(), file.ino()));
    files.dedup_by_key(|(_, file)| (file.dev(), file.ino()));
    Ok(files.iter().map(|(_, file)| file.blocks() * 512).sum())
}

/// The regions of the guest's memory of `host`, and what the kernel says of their files.
fn look_at_files(host: &Host) -> Result<Vec<(FileRange, Metadata)>, CompareError> {
    let map: MemoryMap = host.client()?.ask(&Command::QueryMemory)?;
    let pid = host.machine.pid();
    let look = |range: FileRange| {
        let file = fs::metadata(format!("/proc/{pid}/fd/{}", range.fd));
        file.map(|file| (range, file))
    };
    let files = map.regions.into_iter().map(look).collect::<Result<_, _>>();
    files.map_err(|source| CompareError::Io {
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
    let mut client = destination.client()?;
    let arrived: Status = client.ask(&Command::Status)?;
    client.tell(&Command::Cont)?;
    let status = whole_pass(plan, destination, arrived.guest.as_ref())?;
    Ok(status.guest.unwrap_or_default())
}

/// Waits until the guest of `host`, whose report was `first`, has checked all of its memory once. An idle guest checks nothing.
pub(super) fn whole_pass(
    plan: &RunPlan,
    host: &mut Host,
    first: Option<&GuestStatus>,
) -> Result<Status, CompareError> {
    let passes = |status: Option<&GuestStatus>| status.map_or(0, |guest| guest.full_passes);
    let first = passes(first);
    // The pass that was under way when the guest was stopped does not count. After two more passes one was whole.
    host.wait_until("the guest to check its memory", CHECK_TIMEOUT, |status| {
        let guest = status.guest.as_ref();
        #[cfg(clause_switches)]
        if !plan.switch_off.is_empty() && guest.is_some_and(|guest| guest.wrong > 0) {
            return Ok(true);
        }
        if plan.workload.in_use.0 == 0 || plan.workload.idle {
            return Ok(true);
        }
        guest_failure(guest)?;
        Ok(passes(guest) >= first + 2)
    })
}

pub(super) fn guest_failure(guest: Option<&GuestStatus>) -> Result<(), CompareError> {
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
        first_instruction_ms: None,
        postcopy_ms: report.postcopy.as_ref().map(|postcopy| postcopy.ms),
        postcopy_promised: report
            .postcopy
            .as_ref()
            .map(|postcopy| postcopy.pages_promised),
        postcopy_requests: report.postcopy.as_ref().map(|postcopy| postcopy.requests),
        postcopy_zero_answers: None,
        killed: None,
        recoveries: report.postcopy.as_ref().map(|postcopy| postcopy.recoveries),
        faults: None,
        fault_p50_us: None,
        fault_p99_us: None,
        fault_waits: Vec::new(),
        job_lazy_ms: None,
        job_eager_ms: None,
        idle_resident_bytes: None,
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        downtime: report.downtime.clone(),
        expected_downtime_ms: report.expected_downtime_ms,
        expected_downtime: report.expected,
        rounds: totals.round.into(),
        iteration_count: report.iteration_count,
        dirty_sync_count: report.dirty_sync_count,
        throttle_max_percent: report.throttle_max_percent,
        guest_gap_ms: None,
        guest_read_us: None,
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
        course: Course::default(),
        pages_hinted_by_round: report
            .rounds
            .iter()
            .map(|round| round.pages_hinted)
            .collect(),
        maps: report.maps.clone(),
    }
}
