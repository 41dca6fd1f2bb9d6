// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run whose guest is handed over before its memory, and runs at once. (In the run before, it was held, so that every page could be
//! compared.) The connection may break meanwhile.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use host_migrator::destination::PostcopyPhase;
use host_migrator::paging::PagingStatus;
use host_migrator::report::stats::{MigrationReport, MigrationState};

use super::CompareError;
use super::kill;
use super::line::Line;
use super::parts::Host;
use super::plan::RunPlan;
use super::run::{GUEST_TIMEOUT, check_trace, whole_pass};
use super::steps;
use crate::args::{CompareArgs, ComparedTransport, Cut};
use crate::control::{Command, RecoverArguments};
use crate::machine::{GuestStatus, Status};
use crate::trace::TraceArgs;

/// How long both sides may take to notice a break, and to recover.
const BREAK_TIMEOUT: Duration = Duration::from_secs(60);
/// How often it is looked for the hand-over.
const POLL: Duration = Duration::from_millis(1);
/// Where the destination listens again.
const ANYWHERE: &str = "tcp:127.0.0.1:0";

/// What the run has shown.
pub(super) struct Live {
    pub(super) report: MigrationReport,
    pub(super) paging: PagingStatus,
    pub(super) guest: GuestStatus,
}

/// Whether the flags of `args` fit together.
pub(super) fn check(args: &CompareArgs) -> Result<(), CompareError> {
    let is_early = args.migration.postcopy.is_some();
    match args.transport {
        ComparedTransport::Local | ComparedTransport::File if is_early => Err(CompareError::Flags(
            "--postcopy is for pages that are sent through a connection",
        )),
        ComparedTransport::Unix if !args.cut.is_empty() || args.kill.is_some() => Err(
            CompareError::Flags("--cut and --kill are for --transport tcp"),
        ),
        _ if args.kill.is_some() => kill::check(args.guest.kind),
        _ => Ok(()),
    }
}

/// Two machines, of which one hands its guest over to the other before its memory.
pub(super) struct Early {
    pub(super) source: Host,
    pub(super) destination: Host,
    /// What is between them, if that is to fail.
    pub(super) line: Option<Line>,
    pub(super) trace: TraceArgs,
}

impl Early {
    /// Begins to migrate a guest as `plan` says, with sockets in `folder`, which is made. The destination may `hold` it.
    pub(super) fn begin(
        plan: &RunPlan,
        folder: &Path,
        hold: bool,
        has_line: bool,
    ) -> Result<Self, CompareError> {
        std::fs::create_dir(folder).map_err(|source| CompareError::Io {
            what: "cannot make a folder for the sockets",
            source,
        })?;
        let trace = plan.new_trace(folder)?;
        let tls = plan.new_certificates(folder)?;
        let mut source = steps::start_source(plan, folder, "source", &trace)?;
        let args = plan.receive_args(folder, None, tls.as_ref(), hold);
        let mut destination = steps::start_destination(plan, folder, "destination", args, &trace)?;
        let address = steps::address_of(&mut destination)?;
        steps::until_ready(&mut source)?;
        steps::settle(plan, &mut source)?;
        let line = has_line.then(|| Line::to(&address)).transpose()?;
        let uri = line.as_ref().map_or(address, Line::address);
        steps::begin(plan, &source, uri, tls.as_ref())?;
        Ok(Self {
            source,
            destination,
            line,
            trace,
        })
    }
}

/// Migrates a guest as `plan` says, and lets it check all of its memory.
pub(super) fn run(plan: &RunPlan, folder: &Path) -> Result<Live, CompareError> {
    let has_line = !plan.cuts().is_empty();
    let Early {
        mut source,
        mut destination,
        line,
        trace,
    } = Early::begin(plan, &folder.join("early"), false, has_line)?;
    // The last one stays until the end.
    let _line = match line {
        Some(line) => Some(cut(plan, line, &mut source, &mut destination)?),
        None => None,
    };
    let report = steps::until_migrated(&mut source, |_| ())?;
    let arrived = destination.wait_until("all memory", GUEST_TIMEOUT, |status| {
        let postcopy = status.postcopy.as_ref();
        Ok(postcopy.is_none_or(|postcopy| postcopy.phase == PostcopyPhase::Completed))
    })?;
    let paging = arrived.postcopy.map(|postcopy| postcopy.paging);
    let checked = whole_pass(plan, &mut destination, arrived.guest.as_ref())?;
    trace.trace.as_deref().map(check_trace).transpose()?;
    Ok(Live {
        report,
        // A migration that ended before the switch has brought all memory.
        paging: paging.unwrap_or_default(),
        guest: checked.guest.unwrap_or_default(),
    })
}

/// Breaks the connection `line` as often as `plan` says, and recovers each time. Returns the line that is used then.
fn cut(
    plan: &RunPlan,
    mut line: Line,
    source: &mut Host,
    destination: &mut Host,
) -> Result<Line, CompareError> {
    for Cut { after, how } in plan.cuts() {
        if !until_handed_over(source)? {
            return Ok(line);
        }
        thread::sleep(*after);
        line.cut(*how);
        let Some(before) = until_broken(source, destination)? else {
            return Ok(line);
        };
        let recover = |uri: &str| Command::MigrateRecover(RecoverArguments { uri: uri.into() });
        let answer: Result<serde_json::Value, _> = destination.client()?.ask(&recover(ANYWHERE));
        let answer = answer?;
        let address = answer["listening"].as_str().unwrap_or_default();
        line = Line::to(address)?;
        source.client()?.tell(&recover(&line.address()))?;
        // Until then it still says that the connection is broken.
        source.wait_until("the source to go on", BREAK_TIMEOUT, |status| {
            let migration = &status.migration;
            Ok(migration.status.is_over() || migration.recoveries > before)
        })?;
    }
    Ok(line)
}

/// Waits until both sides have noticed that the connection is broken. Returns how often the source has gone on before; `None` if the
/// migration had ended.
pub(super) fn until_broken(
    source: &mut Host,
    destination: &mut Host,
) -> Result<Option<u64>, CompareError> {
    let found = source.wait_until("the source to notice", BREAK_TIMEOUT, |status| {
        let state = status.migration.status;
        Ok(state.is_over() || state == MigrationState::PostcopyPaused)
    })?;
    if found.migration.status.is_over() {
        return Ok(None);
    }
    destination.wait_until("the destination to notice", BREAK_TIMEOUT, |status| {
        let postcopy = status.postcopy.as_ref();
        Ok(postcopy.is_some_and(|postcopy| postcopy.phase != PostcopyPhase::Active))
    })?;
    Ok(Some(found.migration.recoveries))
}

/// Waits until the guest runs at the destination. False if the migration ends before, or with it.
pub(super) fn until_handed_over(source: &mut Host) -> Result<bool, CompareError> {
    let began = Instant::now();
    let mut client = source.client()?;
    loop {
        let status: Status = client.ask(&Command::Status)?;
        match status.migration.status {
            MigrationState::PostcopyActive => return Ok(true),
            state if state.is_over() => return Ok(false),
            _ if began.elapsed() > GUEST_TIMEOUT => {
                let what = "the guest to be handed over".into();
                return Err(CompareError::Timeout { what });
            }
            _ => thread::sleep(POLL),
        }
    }
}
