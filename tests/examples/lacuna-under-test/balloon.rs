// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All functions of a Linux guest's balloon, before, during and after a migration over TLS: reporting, a target, statistics, hints,
//! and deflating at the destination. Prints the facts as one JSON object; the test checks them.

use std::num::NonZeroU32;
use std::time::Instant;

use host_migrator::report::stats::MigrationReport;
use host_migrator::report::trace::DEFAULT_SLOTS;
use host_migrator::{ControlClient, HintError, Trace};
use lacuna::args::GuestKind;
use lacuna::certificates;
use lacuna::compare::{AgentPort, Host, ask_oracle};
use lacuna::control::{Command, MigrateArguments};
use lacuna::trace::TraceArgs;
use serde_json::{Value, json};
use spec::PAGE_SIZE;
use spec::control::{BalloonStatus, Refusal, Reply, Request, Statistics};
use spec::hint_map::HintPhase;

use crate::linux_guest::{
    Failure, PATIENCE, TCP, VSOCK, address_of, check_rule, receive_over_tls, run_job,
    vsock_is_here, wait_for, wait_until_checked, wait_until_migrated,
};
use crate::memory_files::bytes_taken;

/// The job's name.
pub const JOB: &str = "balloon-under-migration";

const MIB: u64 = 1 << 20;
/// Pages that the guest is asked to give up.
const TARGET: u32 = (128 * MIB / PAGE_SIZE) as u32;
/// The target during the migration. The pages that the guest takes back are then free, and are reported.
const LATER_TARGET: u32 = TARGET / 2;
/// How much memory the host has back when the guest has reported what it freed.
const REPORTED: u64 = 128 * MIB;
/// So slow that during the first round the guest can hint its free memory, deflate the balloon in part, and report that
/// memory, which its kernel does after two seconds.
const BANDWIDTH: u64 = 3 * MIB;
/// Ends the migration on any machine, however much the guest writes.
const ROUNDS: NonZeroU32 = NonZeroU32::new(2).unwrap();
/// What the destination's certificate is for. A vsock address is no name.
const NAME: &str = "destination.example";
const DEVICE: &[&str] = &["--free-page-reporting"];
const WORKLOAD: &[&str] = &[
    "--in-use",
    "48M",
    "--freed",
    "256M",
    "--dirty-rate",
    "4M",
    "--churn",
    "2048",
];

/// Does the job.
pub fn run() -> Result<Value, Failure> {
    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?;
    let trace = folder.path().join("trace");
    Trace::create(&trace, DEFAULT_SLOTS)?;
    let start = |names, job, trace_host| {
        let trace = Some(trace.clone());
        let recording = TraceArgs { trace, trace_host };
        let agent = AgentPort::Absent;
        Host::start(
            &program,
            folder.path(),
            names,
            job,
            DEVICE,
            agent,
            &recording,
        )
    };
    let mut source = start(("source", "source-device"), run_job(WORKLOAD)?, 0)?;
    let pid = source.machine.pid();
    let mut taken_at_most = 0;
    source.wait_until("the guest to be ready", PATIENCE, |status| {
        taken_at_most = taken_at_most.max(bytes_taken(pid).unwrap_or(0));
        Ok(status.guest.as_ref().is_some_and(|guest| guest.ready))
    })?;

    let mut device = Device::of(&source)?;
    device.wait("the host to have memory back", |_| {
        bytes_taken(pid).is_ok_and(|taken| taken + REPORTED <= taken_at_most)
    })?;
    let reported = device.balloon()?;

    device.set_target(TARGET)?;
    device.wait("the balloon to be full", |balloon| {
        balloon.actual_pages == u64::from(TARGET)
    })?;
    let statistics = device.statistics()?;
    let inflated = device.balloon()?;
    let taken_when_inflated = bytes_taken(pid)?;

    let address = if vsock_is_here() { VSOCK } else { TCP };
    let tls = certificates::make(&folder.path().join("tls"), &[NAME.to_owned()], 1)?;
    let mut destination = start(
        ("destination", "destination-device"),
        receive_over_tls(address, &tls.destination),
        1,
    )?;
    source.client()?.tell(&Command::Migrate(
        MigrateArguments {
            max_bandwidth: Some(BANDWIDTH),
            max_rounds: Some(ROUNDS),
            tls_hostname: Some(NAME.into()),
            tls_certificate: Some(tls.source.certificate),
            tls_key: Some(tls.source.key),
            tls_ca: Some(tls.source.ca),
            ..MigrateArguments::to(address_of(&mut destination)?)
        }
        .into(),
    ))?;
    // Free memory is hinted and then held by the driver, so it is not reported.
    device.wait_until_hinted()?;
    device.set_target(LATER_TARGET)?;
    wait_until_migrated(&mut source, &mut destination)?;
    let left = device.balloon()?;
    let hinted = device.pages_hinted()?;
    // Before the oracle reads the memory, because reading a hole allocates it.
    let taken_when_arrived = bytes_taken(destination.machine.pid())?;
    let report: MigrationReport = source.client()?.ask(&Command::QueryReport)?;
    let verdict = ask_oracle(GuestKind::Linux, &source, &destination)?;

    let mut device = Device::of(&destination)?;
    let arrived = device.balloon()?;
    destination.client()?.tell(&Command::Cont)?;
    device.set_target(0)?;
    device.wait("the balloon to be empty", |balloon| {
        balloon.actual_pages == 0
    })?;
    let guest = wait_until_checked(&mut destination)?;
    let deflated = device.balloon()?;
    let rule = check_rule(&trace)?;
    Ok(json!({
        "rule": rule,
        "address": address,
        "tls": report.tls,
        "taken-at-most": taken_at_most,
        "taken-when-inflated": taken_when_inflated,
        "taken-when-arrived": taken_when_arrived,
        "statistics": statistics.values(),
        "reported": facts(&reported),
        "inflated": facts(&inflated),
        "left": facts(&left),
        "arrived": facts(&arrived),
        "deflated": facts(&deflated),
        "pages-hinted": hinted,
        "rounds": report.rounds.len(),
        "pages-compared": verdict.pages_compared,
        "pages-wrong": verdict.pages_wrong,
        "wrong": format!("{:?}", verdict.examples),
        "guest-checks": guest.checks,
        "guest-wrong": guest.wrong,
        "guest-failure": guest.failure,
    }))
}

fn facts(balloon: &BalloonStatus) -> Value {
    json!({
        "target": balloon.target_pages,
        "actual": balloon.actual_pages,
        "ballooned": balloon.ballooned_pages,
        "reported": balloon.reported_pages,
        "inflated": balloon.inflated_pages,
        "deflated": balloon.deflated_pages,
        "discarded-bytes": balloon.discarded_bytes,
        "failed-discards": balloon.failed_discards,
        "out-of-range": balloon.out_of_range,
        "bad-buffers": balloon.bad_buffers,
    })
}

/// A balloon device's control socket.
struct Device(ControlClient);

impl Device {
    fn of(host: &Host) -> Result<Self, Failure> {
        Ok(Self(ControlClient::connect(
            &host.balloon_control,
            PATIENCE,
        )?))
    }

    fn set_target(&mut self, pages: u32) -> Result<(), Failure> {
        self.0.ask(Request::SetTarget { pages }, None)?;
        Ok(())
    }

    fn balloon(&mut self) -> Result<BalloonStatus, Failure> {
        match self.0.ask(Request::BalloonStatus, None)? {
            Reply::BalloonStatus(balloon) => Ok(balloon),
            other => Err(format!("no status of the balloon but {other:?}").into()),
        }
    }

    /// Pages that the guest has hinted, whether they were still to be sent or not.
    fn pages_hinted(&mut self) -> Result<u64, Failure> {
        match self.0.ask(Request::Status, None)? {
            Reply::Status(status) => Ok(status.pages),
            other => Err(format!("no status of the device but {other:?}").into()),
        }
    }

    /// Waits until the guest has hinted all that it can in the open epoch of a migration.
    fn wait_until_hinted(&mut self) -> Result<(), Failure> {
        wait_for("the guest to hint", || {
            match self.0.ask(Request::HintState, None)? {
                Reply::HintState(state) => Ok((state.phase == HintPhase::Finished).then_some(())),
                other => Err(format!("no state of hinting but {other:?}").into()),
            }
        })
    }

    fn wait(&mut self, what: &str, ready: impl Fn(&BalloonStatus) -> bool) -> Result<(), Failure> {
        wait_for(what, || Ok(ready(&self.balloon()?).then_some(())))
            .map_err(|error| format!("{error}: {:?}", self.balloon()).into())
    }

    /// Asks the guest for statistics, and waits for some that are newer than the request.
    fn statistics(&mut self) -> Result<Statistics, Failure> {
        let began = Instant::now();
        let milliseconds = 500;
        self.0
            .ask(Request::SetStatisticsInterval { milliseconds }, None)?;
        let young =
            |statistics: &Statistics| u128::from(statistics.age_ms()) < began.elapsed().as_millis();
        wait_for("statistics", || {
            match self.0.ask(Request::Statistics, None) {
                Ok(Reply::Statistics(statistics)) => Ok(Some(statistics).filter(young)),
                Ok(_) | Err(HintError::Refused(Refusal::NoStatistics)) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }
}
