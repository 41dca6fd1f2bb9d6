// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A local hand-over: the destination, on the same host, gets the memory files themselves, and only the machine's state is
//! sent.
//!
//! Both sides then map one memory. Before the hand-over the destination does not change it, and afterwards this side does
//! not: vCPUs, devices and their back ends are stopped, as in every switchover. Nothing is logged, and the guest is not
//! asked for hints.

use std::os::fd::AsFd;

use spec::PAGE_SIZE;
use spec::stream::{SectionKind, Totals, lent_to_bytes};
use spec::trace::Event;

use super::error::MigrationError;
use super::greeting;
use super::guest::Source;
use super::handover::{self, check};
use super::progress::Progress;
use super::sender::milliseconds;
use super::switchover::{self, Plan};
use crate::report::stats::{LentMemory, MigrationReport};
use crate::sink::link::Link;
use crate::source::params::MigrationParams;

type Result<T> = std::result::Result<T, MigrationError>;

/// Lends the memory of `source`, stops the guest and hands it over. After an error the record of ownership says who has the
/// guest; if it is here, it may be stopped.
pub(super) fn migrate(
    source: &mut Source<'_>,
    params: &MigrationParams,
    link: &mut Link,
    progress: &Progress,
) -> Result<MigrationReport> {
    let (_, _) = greeting::greet(link, source, params)?;
    let lent = lend(source, link)?;
    let setup = progress.started().elapsed();
    progress.update(|status| {
        status.setup_time = setup.as_millis() as u64;
        status.ram.lent_bytes = lent.bytes;
    });
    let mut plan = Plan {
        machine: source.machine.as_mut(),
        ownership: &source.ownership,
        trace: &source.trace,
        params,
        progress,
        time: params.switchover_time(params.besides_memory),
    };
    check(progress, link)?;
    let mut stopped = switchover::stop(&mut plan, link)?;
    switchover::send_state(&mut plan, link, Totals::default(), &mut stopped)?;
    handover::hand_over(plan, link, &mut stopped)?;
    let report = MigrationReport {
        setup_ms: milliseconds(setup),
        total_ms: milliseconds(progress.started().elapsed()),
        downtime_ms: stopped.steps.sum(),
        expected_downtime_ms: milliseconds(params.besides_memory),
        downtime: stopped.steps,
        pages_total: lent.bytes / PAGE_SIZE,
        wire_bytes: link.out.bytes(),
        channels: 1,
        lent: Some(lent),
        ..MigrationReport::default()
    };
    progress.update(|status| {
        status.ram.transferred = report.wire_bytes;
        status.downtime = report.downtime_ms as u64;
    });
    Ok(report)
}

/// Gives the destination the memory files. It has mapped them afterwards. The guest runs.
fn lend(source: &Source<'_>, link: &mut Link) -> Result<LentMemory> {
    let files = source.ram.files().map_err(MigrationError::MemoryFiles)?;
    let regions = files.ok_or(MigrationError::NoMemoryFiles)?;
    let trace = &source.trace;
    trace.record(Event::Begin(source.logs.len() as u64));
    trace.record(Event::Lent);
    let table: Vec<u8> = (regions.iter())
        .flat_map(|region| lent_to_bytes(region.offset))
        .collect();
    let descriptors: Vec<_> = regions.iter().map(|region| region.file.as_fd()).collect();
    link.out.memory(&table, &descriptors)?;
    link.peer.expect(SectionKind::Mapped, "Mapped")?;
    Ok(LentMemory {
        files: regions.len() as u32,
        bytes: regions.iter().map(|region| region.len).sum(),
    })
}
