// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The rounds: send what is pending, harvest what was written meanwhile, until the rest is small.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::PAGE_SIZE;
use spec::stream::{GREETING_BYTES, Greeting, MAX_DESCRIPTION, SectionKind, StreamHeader};

use super::ending;
use super::estimate::{Downtime, Estimate};
use super::handover::{self, Plan};
use super::pacing::Pacing;
use super::progress::Progress;
use super::sender::{Sender, milliseconds};
use super::{MigrationError, Source};
use crate::memory::ram::GuestRam;
use crate::ownership::{Owner, OwnershipRecord};
use crate::report::page_source::{PageSource, PagesBySource};
use crate::report::round_map::Recorder;
use crate::report::stats::{MigrationReport, MigrationState, RoundStats};
use crate::report::trace::Trace;
use crate::rule::tracker::Tracker;
use crate::sink::link::Link;
use crate::source::params::MigrationParams;
use crate::vm::machine::SourceMachine;
use crate::walk::hold_back::Outlook;
use crate::walk::left_out::LeftOut;
use crate::walk::untouched;
use crate::wire::{Connection, SectionError};

/// If back ends log at least this many pages, these are not only their rings: a balloon has discarded memory.
const DISCARDS: u64 = 64;

/// Migrates `source`. Whatever happens, dirty logging is off afterwards, the guest has been told to take
/// its pages back, and unless it was handed over it runs.
pub(crate) fn migrate(
    source: &mut Source,
    params: &MigrationParams,
    channel: Connection,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    if source.ownership.get().owner != Owner::Here {
        progress.update(|status| {
            status.status = MigrationState::Failed;
            status.error_desc = Some(MigrationError::NotHere.to_string());
        });
        return Err(MigrationError::NotHere);
    }
    let mut link = Link::new(channel);
    let result = ending::caught(|| run(source, params, &mut link, progress));
    ending::end(source, params, link, progress, result)
}

fn run(
    source: &mut Source,
    params: &MigrationParams,
    link: &mut Link,
    progress: &Progress,
) -> Result<MigrationReport, MigrationError> {
    let Source {
        machine,
        ram,
        logs,
        hints,
        trace,
        ownership,
    } = source;
    let trace: &Trace = trace;
    let ram: &GuestRam = ram;
    progress.update(|status| {
        status.status = MigrationState::Setup;
        status.ram.total = ram.pages() * PAGE_SIZE;
        status.ram.page_size = PAGE_SIZE;
    });
    let round_trip = greet(link, ram, machine.as_mut(), ownership)?;
    let hints = hints.as_deref_mut().map(|hints| hints as _);
    let tellers = params.sources.tellers();
    let mut tracker = Tracker::arm(ram, logs, hints, tellers, params.clauses(), trace)?;
    let setup = progress.started().elapsed();
    // Asked for after arming: a page that is written from now on is in a log.
    let left_out = LeftOut::new(ram.bitmap_pages());
    let mut go_on = || !progress.is_cancelled();
    let sources = params.sources;
    let untouched = untouched::leave_out(&mut tracker, ram, sources, &left_out, trace, &mut go_on)?;
    let pacing = Pacing::new(params.max_bandwidth);
    let estimate = Estimate::new(params.besides_memory, round_trip);
    let mut sender = Sender::new(link, ram, progress, pacing, estimate, trace, left_out);
    sender.find_zeros = params.sources.contains(PageSource::Zero);
    if params.map_rounds {
        sender.maps = Recorder::new(ram, tracker.bitmap());
    }
    progress.update(|status| {
        status.status = MigrationState::Active;
        status.setup_time = setup.as_millis() as u64;
        status.hints.holes = untouched.sum();
    });
    let mut report = MigrationReport {
        setup_ms: milliseconds(setup),
        pages_total: ram.pages(),
        pages_holes: untouched.sum(),
        ..MigrationReport::default()
    };
    let expected = rounds(
        untouched,
        &mut tracker,
        &mut sender,
        params,
        progress,
        &mut report,
    )?;
    report.expected_downtime_ms = milliseconds(expected);
    let plan = Plan {
        machine: machine.as_mut(),
        ownership,
        trace,
        params,
        progress,
        round: sender.totals().round + 1,
        time: params.switchover_time(expected),
    };
    let (steps, last) = handover::switch_over(plan, &mut tracker, &mut sender)?;
    report.total_ms = milliseconds(progress.started().elapsed());
    report.downtime_ms = steps.sum();
    report.downtime = steps;
    report.add_round(last);
    report.totals = sender.totals().clone();
    report.wire_bytes = sender.link.out.bytes();
    report.hints = progress.status().hints;
    report.maps = sender.maps.finish();
    report.skipped = Some(Arc::new(sender.into_skipped()));
    progress.update(|status| {
        status.ram.transferred = report.wire_bytes;
        status.downtime = report.downtime_ms as u64;
    });
    Ok(report)
}

/// The two sides make sure that they mean the same stream, the same memory and the same machine. Returns how long an
/// answer took.
fn greet(
    link: &mut Link,
    ram: &GuestRam,
    machine: &mut dyn SourceMachine,
    ownership: &OwnershipRecord,
) -> Result<Duration, MigrationError> {
    let description = machine.describe()?;
    if description.len() as u64 > MAX_DESCRIPTION {
        return Err(MigrationError::DescriptionTooLarge(description.len()));
    }
    let greeting: [u8; GREETING_BYTES] = link.peer.start()?;
    let Greeting { session } = Greeting::from_bytes(&greeting).map_err(SectionError::from)?;
    let header = StreamHeader {
        session,
        number: ownership.begin(session),
        ram_bytes: ram.pages() * PAGE_SIZE,
        regions: ram.regions().len() as u32,
    };
    link.out.start(&header.to_bytes())?;
    link.start_heartbeats()?;
    let asked = Instant::now();
    link.out.section(SectionKind::Layout, [&ram.layout()])?;
    link.out.section(SectionKind::Description, [&description])?;
    link.peer.expect(SectionKind::Accept, "Accept")?;
    Ok(asked.elapsed())
}

/// Goes round until what is left fits the downtime limit. Returns the downtime to be expected then.
fn rounds(
    untouched: PagesBySource,
    tracker: &mut Tracker<'_>,
    sender: &mut Sender<'_>,
    params: &MigrationParams,
    progress: &Progress,
    report: &mut MigrationReport,
) -> Result<Duration, MigrationError> {
    let mut pending = tracker.bitmap().count();
    let mut by_back_ends = 0;
    let free = tracker.free_pages();
    for round in 1.. {
        sender.begin_round(round, pending);
        if round == 1 {
            sender.count_left_out(untouched);
        }
        if by_back_ends >= DISCARDS && params.sources.contains(PageSource::Zero) {
            sender.look_for_holes(tracker, params.sources)?;
        }
        let began = Instant::now();
        let outlook = Outlook {
            pending,
            pages_per_second: sender.pacing.pages_per_second(),
            words: tracker.bitmap().word_count() as u64,
            free,
            silent: tracker.guest_is_silent(),
        };
        let mut epoch = tracker.open();
        let (pass, mut early) = epoch.pass(params.early_harvests, pending);
        sender.walk_while_it_runs(&pass, &mut early, outlook)?;
        sender.end_round()?;
        sender.round_received()?;
        epoch.close();
        let harvesting = Instant::now();
        let harvest = tracker.harvest(sender.for_harvest())?;
        sender.estimate.harvested(harvesting.elapsed());
        by_back_ends = harvest.by_back_ends;
        let stats = sender.take_round(harvest);
        pending = tracker.bitmap().count();
        report_round(tracker, &stats, began.elapsed(), pending, progress);
        report.add_round(stats);
        let expected = sender.expected_downtime(pending);
        let fits = expected.is_some_and(|expected| expected.fits(params.downtime_limit));
        if fits || params.max_rounds.is_some_and(|max| round >= max) {
            return Ok(expected.map_or(Duration::MAX, Downtime::sum));
        }
        sender.check()?;
    }
    unreachable!("4 billion rounds take longer than the machine lives")
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
        status.ram.dirty_sync_count += 1;
        status.ram.dirty_pages_rate = (written as f64 / took.as_secs_f64()) as u64;
        status.hints.active = tracker.uses_hints();
        status.hints.epochs = tracker.epochs();
        status.hints.too_late += stats.pages_hinted_too_late;
        status.hints.lost = tracker.hints_lost().map(str::to_owned);
    });
}
