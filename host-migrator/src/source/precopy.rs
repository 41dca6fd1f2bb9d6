// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rounds: send what is pending, harvest what was written meanwhile, until the rest is small.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::{PAGE_SIZE, PageRange};

use super::converging::Converging;
use super::ending;
use super::error::MigrationError;
use super::estimate::Estimate;
use super::greeting;
use super::guest::Source;
use super::handover;
use super::local;
use super::outgoing::Outgoing;
use super::pacing::Pacing;
use super::postcopy::collecting::collect;
use super::postcopy::{self, Server};
use super::progress::Progress;
use super::sender::{RoundPlan, Sender, milliseconds};
use super::switchover::{Plan, Stopped, stop_and_send};
use crate::convergence::downtime::Downtime;
use crate::memory::guest_memory::GuestMemory;
use crate::memory::holes::HoleBudget;
use crate::ownership::{Owner, OwnershipRecord};
use crate::report::page_source::{PageSource, PagesBySource};
use crate::report::round_map::Recorder;
use crate::report::stats::{ExpectedSteps, MigrationReport, MigrationState, RoundStats};
use crate::report::trace::Trace;
use crate::rule::{EarlyPlan, Tracker};
use crate::sink::Sink;
use crate::sink::link::Link;
use crate::source::params::{MigrationParams, PostcopyStart};
use crate::walk::hold_back::Outlook;
use crate::walk::left_out::LeftOut;
use crate::walk::{Walk, untouched};
use crate::wire::Connection;

/// If back ends log at least this many pages, these are not only their rings: a balloon has discarded memory.
const DISCARDS: u64 = 64;
/// The most holes that a round looks for. Without a limit a guest could make the search last as long as it likes.
const MOST_HOLES: u64 = 1 << 16;
/// The most bytes of holes that are read in a round, on a kernel whose holes have to be read.
const MOST_HOLE_BYTES: u64 = 256 << 20;

/// Migrates `source`. Whatever happens, dirty logging is off afterwards, the guest was told DONE, and it runs unless it was
/// handed over.
pub(crate) fn migrate(
    source: &mut Source<'_>,
    params: &MigrationParams,
    channel: Connection,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    owns_guest(source, progress)?;
    let (passes_files, tls) = (channel.passes_files(), channel.is_encrypted());
    let mut link = Link::new(channel).map_err(|error| not_begun(error.into(), progress))?;
    let result = ending::caught(|| {
        set_up(source, progress);
        progress.update(|status| status.tls = tls);
        if params.local && !passes_files {
            return Err(MigrationError::NotLocal);
        }
        if params.local {
            return local::migrate(source, params, &mut link, progress);
        }
        let (round_trip, lanes) = greeting::greet(&mut link, source, params)?;
        let (ownership, mut server) = (source.ownership.clone(), None);
        progress.update(|status| status.postcopy_allowed = lanes.is_some());
        let mut lanes = lanes;
        let report = run(
            source,
            params,
            &mut link,
            round_trip,
            progress,
            |plan, round, tracker, sender, ends| match lanes.take().filter(|_| ends.early) {
                None => handover::switch_over(plan, round, tracker, sender),
                Some(lanes) => {
                    let (stopped, round, serving) =
                        postcopy::switchover::switch_over(plan, round, tracker, sender, lanes)?;
                    server = Some(serving);
                    Ok((stopped, round))
                }
            },
        )?;
        match server {
            None => Ok(report),
            Some(server) => serve(server, report, &ownership, progress),
        }
    });
    let result = result.map(|report| MigrationReport { tls, ..report });
    ending::end(source, params, link, progress, result)
}

/// Copies `source` into `sink`. Whatever happens, dirty logging is off afterwards, the guest was told DONE, and it runs.
pub(crate) fn copy<S: Sink>(
    source: &mut Source<'_>,
    params: &MigrationParams,
    sink: &mut S,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    owns_guest(source, progress)?;
    let result = ending::caught(|| {
        set_up(source, progress);
        run(
            source,
            params,
            sink,
            Duration::ZERO,
            progress,
            |mut plan, round, tracker, sender, _| {
                let stopped = stop_and_send(&mut plan, round, tracker, sender)?;
                // Whichever is first, this or a cancel, wins.
                plan.progress
                    .commit()
                    .then_some(stopped)
                    .ok_or(MigrationError::Cancelled)
            },
        )
    });
    ending::end_copy(source, params, progress, result, || Ok(sink.finish()?))
}

/// Brings what was promised of a guest that the destination runs. Returns `report` with that.
fn serve(
    server: Server,
    report: MigrationReport,
    ownership: &OwnershipRecord,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    let postcopy = server.run(ownership, progress)?;
    Ok(MigrationReport {
        total_ms: milliseconds(progress.started().elapsed()),
        wire_bytes: report.wire_bytes + postcopy.bytes,
        postcopy: Some(postcopy),
        ..report
    })
}

/// Makes sure that the guest of `source` is here.
fn owns_guest(source: &Source<'_>, progress: &Progress) -> Result<(), MigrationError> {
    if source.ownership.get().owner == Owner::Here {
        return Ok(());
    }
    Err(not_begun(MigrationError::NotHere, progress))
}

/// Reports `error`, which came before anything was done.
fn not_begun(error: MigrationError, progress: &Progress) -> MigrationError {
    progress.update(|status| {
        status.status = MigrationState::Failed;
        status.error_desc = Some(error.to_string());
    });
    error
}

fn set_up(source: &Source<'_>, progress: &Progress) {
    progress.update(|status| {
        status.status = MigrationState::Setup;
        status.ram.total = source.ram.layout().pages() * PAGE_SIZE;
        status.ram.page_size = PAGE_SIZE;
    });
}

/// Runs the rounds and the switchover. The first answer of what is behind `sink` has taken `round_trip`.
fn run<S: Sink>(
    source: &mut Source<'_>,
    params: &MigrationParams,
    sink: &mut S,
    round_trip: Duration,
    progress: &Progress,
    switch_over: impl FnOnce(
        Plan<'_>,
        u32,
        &mut Tracker<'_>,
        &mut Sender<'_, S>,
        RoundsEnd,
    ) -> Result<(Stopped, RoundStats), MigrationError>,
) -> Result<MigrationReport, MigrationError> {
    let Source {
        machine,
        ram,
        logs,
        hints,
        throttle,
        trace,
        ownership,
    } = source;
    let trace: &Trace = trace;
    let ram: &dyn GuestMemory = ram.as_ref();
    let hints = hints.as_deref_mut().map(|hints| hints as _);
    let tellers = params.sources.tellers();
    let mut tracker = Tracker::arm_with(
        ram.layout().regions(),
        logs,
        hints,
        tellers,
        params.clauses(),
        trace,
    )?;
    let setup = progress.started().elapsed();
    // Asked for after arming: a page that is written from now on is in a log.
    let left_out = LeftOut::new(ram.layout().bitmap_pages());
    let mut go_on = || !progress.is_cancelled();
    let sources = params.sources;
    let untouched = untouched::leave_out(&mut tracker, ram, sources, &left_out, trace, &mut go_on)?;
    let pacing = Pacing::new(params.max_bandwidth);
    let estimate = Estimate::new(params.besides_memory, round_trip);
    let out = Outgoing::new(sink, progress, pacing, estimate, trace);
    let mut walk = Walk::with_left_out(ram, params.sources.contains(PageSource::Zero), left_out);
    if params.map_rounds {
        walk.record_maps(Recorder::new(ram, tracker.bitmap()));
    }
    let converging = Converging::new(throttle.as_deref_mut(), params, trace, progress);
    let mut sender = Sender::new(out, walk, converging);
    progress.update(|status| {
        status.status = MigrationState::Active;
        status.setup_time = setup.as_millis() as u64;
        status.hints.holes = untouched.sum();
    });
    let mut report = MigrationReport {
        setup_ms: milliseconds(setup),
        pages_total: ram.layout().pages(),
        pages_holes: untouched.sum(),
        ..MigrationReport::default()
    };
    let ends = rounds(
        untouched,
        ram,
        &mut tracker,
        &mut sender,
        params,
        progress,
        &mut report,
    )?;
    report.expected_downtime_ms = milliseconds(ends.expected);
    report.expected = ends.steps;
    let plan = Plan {
        machine: machine.as_mut(),
        ownership,
        trace,
        params,
        progress,
        time: params.switchover_time(ends.expected),
    };
    let round = sender.totals().round + 1;
    let (stopped, last_round) = switch_over(plan, round, &mut tracker, &mut sender, ends)?;
    let steps = stopped.steps;
    report.total_ms = milliseconds(progress.started().elapsed());
    report.downtime_ms = steps.sum();
    report.downtime = steps;
    report.add_round(last_round);
    report.totals = sender.totals().clone();
    report.wire_bytes = sender.out.sink.bytes();
    sender
        .out
        .sink
        .bytes_by_channel(&mut report.bytes_by_channel);
    report.channels = sender.out.sink.channels();
    report.compression = sender.compression();
    let status = progress.status();
    report.iteration_count = status.ram.iteration_count;
    report.dirty_sync_count = status.ram.dirty_sync_count;
    report.throttle_max_percent = sender.converging.most();
    report.decisions = sender.converging.decisions().to_vec();
    report.hints = status.hints;
    let (maps, left_out) = sender.walk.finish();
    report.maps = maps;
    report.skipped = Some(Arc::new(left_out.hinted()));
    progress.update(|status| {
        status.ram.transferred = report.wire_bytes;
        let before = status.ram.precopy_bytes;
        status.ram.downtime_bytes = report.wire_bytes.saturating_sub(before);
        status.compression = report.compression.clone();
        status.downtime = report.downtime_ms as u64;
    });
    Ok(report)
}

/// Why the rounds end.
#[derive(Clone, Copy)]
struct RoundsEnd {
    /// How long the guest is expected to be stopped.
    expected: Duration,
    /// The parts of that time.
    steps: Option<ExpectedSteps>,
    /// The guest is handed over before its memory.
    early: bool,
}

/// Runs rounds until the remaining pages fit the downtime limit, or come after the guest.
fn rounds<S: Sink>(
    untouched: PagesBySource,
    ram: &dyn GuestMemory,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_, S>,
    params: &MigrationParams,
    progress: &Progress,
    report: &mut MigrationReport,
) -> Result<RoundsEnd, MigrationError> {
    let mut pending = tracker.bitmap().count();
    let mut by_back_ends = 0;
    let free = tracker.free_pages();
    for round in 1.. {
        sender.begin_round(round, pending);
        if round == 1 {
            sender.count_left_out(untouched);
        }
        if by_back_ends >= DISCARDS && params.sources.contains(PageSource::Zero) {
            look_for_holes(tracker, ram, params, progress)?;
        }
        let began = Instant::now();
        let plan = RoundPlan {
            outlook: Outlook {
                pending,
                pages_per_second: sender.out.pacing.pages_per_second(),
                words: tracker.bitmap().word_count() as u64,
                free,
                silent: tracker.guest_is_silent(),
            },
            early: EarlyPlan::new(params.early_harvests, pending, tracker.bitmap().pages()),
            sync_pages: params.sync_pages,
            wait_for_hints: params.wait_for_hints,
        };
        let epoch = match params.postcopy {
            Some(PostcopyStart::AtOnce) => collect(sender, tracker.open())?,
            _ => sender.walk_while_it_runs(tracker.open(), plan)?,
        };
        sender.end_round()?;
        sender.out.round_received()?;
        let (tracker, mut harvest) = epoch.end(sender)?;
        sender.out.estimate.harvested(harvest.took);
        pending = tracker.bitmap().count();
        sender.tell_harvest(&harvest, pending, false);
        let fits = sender.harvested(&harvest, pending);
        let stats = sender.take_round(&mut harvest);
        by_back_ends = harvest.by_back_ends;
        report_round(tracker, &stats, began.elapsed(), pending, progress);
        report.add_round(stats);
        let early = match params.postcopy {
            None => false,
            Some(PostcopyStart::OnCommand | PostcopyStart::WhenStalled) => {
                progress.orders().is_start_wanted()
            }
            Some(PostcopyStart::AtOnce) => true,
            Some(PostcopyStart::After(rounds)) => {
                round >= rounds.get() || progress.orders().is_start_wanted()
            }
        };
        if early {
            // Only its state is sent while it is stopped.
            let expected = params.besides_memory;
            return Ok(RoundsEnd {
                expected,
                steps: None,
                early,
            });
        }
        let expected = sender.out.expected_downtime(pending);
        if fits || params.max_rounds.is_some_and(|max| round >= max) {
            let expected = expected.map_or(Duration::MAX, Downtime::sum);
            return Ok(RoundsEnd {
                expected,
                steps: sender.out.expected_steps(pending),
                early,
            });
        }
        sender.out.check()?;
    }
    unreachable!("4 billion rounds take longer than the machine lives")
}

/// Looks for holes, so that the round that has begun takes them for zeros. Holes that are not found within the limits are
/// read like other pages.
fn look_for_holes(
    tracker: &mut Tracker<'_>,
    ram: &dyn GuestMemory,
    params: &MigrationParams,
    progress: &Progress,
) -> Result<(), MigrationError> {
    let mut budget = HoleBudget {
        holes: MOST_HOLES,
        bytes: MOST_HOLE_BYTES,
        go_on: &mut || !progress.is_cancelled(),
    };
    let find = |hole: &mut dyn FnMut(PageRange)| ram.find_holes(&mut budget, hole);
    Ok(tracker.look_for_holes(params.sources, find)?)
}

fn report_round(
    tracker: &Tracker<'_>,
    stats: &RoundStats,
    took: Duration,
    pending: u64,
    progress: &Progress,
) {
    log::debug!("{stats:?}, {pending} pages pending");
    let written = stats.dirty_harvested + stats.pages_written_before_copy;
    progress.update(|status| {
        status.ram.remaining = pending * PAGE_SIZE;
        status.ram.dirty_pages_rate = (written as f64 / took.as_secs_f64()) as u64;
        status.hints.active = tracker.uses_hints();
        status.hints.epochs = tracker.epochs();
        status.hints.too_late += stats.pages_hinted_too_late;
        status.hints.lost = tracker.hints_lost().map(str::to_owned);
    });
}
