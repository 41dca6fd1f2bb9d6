// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A Linux guest's agent on its way through two migrations, of which the first asks it alone and the second the driver
//! as well; a person asks it before the first, between the two, and after the second. Its state is on the way for a
//! while each time, and where it arrives its wall clock is compared with the host's. Says what it saw as one JSON
//! object; the claims are the test's.

use std::thread;
use std::time::{Duration, Instant};

use host_migrator::report::stats::MigrationReport;
use host_migrator::report::trace::DEFAULT_SLOTS;
use host_migrator::{ControlClient, HintError, PageSource, Trace};
use lacuna::args::GuestKind;
use lacuna::compare::{AgentPort, Host, ask_oracle};
use lacuna::control::{Command, MigrateArguments};
use lacuna::machine::GuestStatus;
use lacuna::trace::TraceArgs;
use serde_json::{Value, json};
use spec::control::{Refusal, Reply, Request};
use spec::hint_map::HintPhase;
use spec::stream::SectionKind;

use crate::linux_guest::{
    Failure, PATIENCE, POLL, TCP, address_of, check_rule, receive_job, run_job, wait_until_checked,
    wait_until_migrated,
};
use crate::wire::{Fault, faulty};

/// The job's name.
pub const JOB: &str = "agent-under-migration";

const WORKLOAD: &[&str] = &[
    "--in-use",
    "48M",
    "--freed",
    "256M",
    "--dirty-rate",
    "2M",
    "--churn",
    "1024",
];
/// What each migration uses to find free pages.
const SOURCES: [&[PageSource]; 2] = [
    &[PageSource::Agent, PageSource::Zero],
    &[PageSource::Driver, PageSource::Agent, PageSource::Zero],
];
/// Milliseconds. What the guest writes in such a time fits in, so that the migration ends on any machine.
const DOWNTIME_LIMIT: u64 = 1000;
/// How long the machine's state is on the way: far longer than a line takes through the console, so that a clock which
/// lost this time shows.
const ON_THE_WAY: Duration = Duration::from_secs(3);
/// The hosts, and the balloon devices beside them.
const HOSTS: [(&str, &str); 3] = [
    ("first", "first-device"),
    ("second", "second-device"),
    ("third", "third-device"),
];

/// Does the job.
pub fn run() -> Result<Value, Failure> {
    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?;
    let trace = folder.path().join("trace");
    Trace::create(&trace, DEFAULT_SLOTS)?;
    let start = |number: usize, job| {
        let recording = TraceArgs {
            trace: Some(trace.clone()),
            trace_host: number as u16,
        };
        let (names, agent) = (HOSTS[number], AgentPort::Present);
        Host::start(&program, folder.path(), names, job, &[], agent, &recording)
    };
    let mut host = start(0, run_job(WORKLOAD)?)?;
    host.wait_until("the guest to be ready", PATIENCE, |status| {
        Ok(status.guest.as_ref().is_some_and(|guest| guest.ready))
    })?;
    let mut told = vec![pages_of_agent(&host)?];
    let mut clocks = vec![clock_behind(&mut host)?];
    let mut migrations = Vec::new();
    for (number, sources) in (1..).zip(SOURCES) {
        let mut destination = start(number, receive_job(TCP))?;
        migrations.push(migrate(&mut host, &mut destination, sources)?);
        clocks.push(clock_behind(&mut destination)?);
        told.push(pages_of_agent(&destination)?);
        host = destination;
    }
    let guest = wait_until_checked(&mut host)?;
    let rule = check_rule(&trace)?;
    Ok(json!({
        "rule": rule,
        "told": told,
        "clock-behind-ms": clocks,
        "migrations": migrations,
        "guest-checks": guest.checks,
        "guest-wrong": guest.wrong,
        "guest-failure": guest.failure,
    }))
}

/// Moves the guest, compares every page, and lets it run on.
fn migrate(
    source: &mut Host,
    destination: &mut Host,
    sources: &[PageSource],
) -> Result<Value, Failure> {
    let address = address_of(destination)?;
    let slow = faulty(
        &address,
        SectionKind::MachineState,
        Fault::Stall(ON_THE_WAY),
    );
    source.client()?.tell(&Command::Migrate(
        MigrateArguments {
            downtime_limit: DOWNTIME_LIMIT,
            sources: sources.iter().copied().collect(),
            ..MigrateArguments::to(slow)
        }
        .into(),
    ))?;
    wait_until_migrated(source, destination)?;
    let report: MigrationReport = source.client()?.ask(&Command::QueryReport)?;
    let verdict = ask_oracle(GuestKind::Linux, source, destination)?;
    destination.client()?.tell(&Command::Cont)?;
    let rounds = report.rounds.iter().map(|round| round.pages_by_source);
    Ok(json!({
        "rounds": rounds.collect::<Vec<_>>(),
        "wire-bytes": report.wire_bytes,
        "total-ms": report.total_ms,
        "downtime-ms": report.downtime_ms,
        "pages-compared": verdict.pages_compared,
        "pages-wrong": verdict.pages_wrong,
        "wrong": format!("{:?}", verdict.examples),
    }))
}

/// Milliseconds by which the guest's wall clock is behind the host's, by the first line that it has written at `host`.
fn clock_behind(host: &mut Host) -> Result<i64, Failure> {
    let behind = |guest: &GuestStatus| guest.clock_behind_ms;
    let status = host.wait_until("a line of the guest", PATIENCE, |status| {
        Ok(status.guest.as_ref().and_then(behind).is_some())
    })?;
    Ok(status.guest.as_ref().and_then(behind).unwrap_or_default())
}

/// Asks the guest at `host` for its free pages, as a person does, until its agent tells some. Returns how many.
fn pages_of_agent(host: &Host) -> Result<u64, Failure> {
    let mut device = ControlClient::connect(&host.balloon_control, PATIENCE)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let mut reply = device.ask(Request::HintStart, None);
        while let Ok(Reply::HintState(state)) = &reply {
            let (pages, is_over) = (state.agent_pages, state.phase == HintPhase::Finished);
            if is_over || Instant::now() > end {
                device.ask(Request::HintStop, None)?;
                if pages > 0 {
                    return Ok(pages);
                }
                break;
            }
            thread::sleep(POLL);
            reply = device.ask(Request::HintState, None);
        }
        match reply {
            // Neither agent nor driver is there yet.
            Ok(Reply::HintState(_))
            | Err(HintError::Refused(
                Refusal::NotNegotiated | Refusal::Stopped | Refusal::Unreachable,
            )) => {}
            Ok(other) => return Err(format!("no state of hinting but {other:?}").into()),
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > end {
            return Err("waited for the agent in vain".into());
        }
        thread::sleep(POLL);
    }
}
