// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The end of a migration, after success and failure: first the guest, then its logs and hints, last the destination.
//!
//! The record of ownership says whether the guest is still here. A step that fails does not stop the others, not even by a
//! panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use spec::trace::Event;
use spec::trace::event::Outcome;

use super::error::MigrationError;
use super::guest::Source;
use super::progress::Progress;
use crate::ownership::Owner;
use crate::panics::{attempt, text_of};
use crate::report::events::MigrationEvent;
use crate::report::stats::{MigrationReport, MigrationState};
use crate::rule::put_back;
use crate::sink::link::Link;
use crate::source::params::MigrationParams;
use crate::vm::error::MachineError;
use crate::wire::SectionError;

/// How long to wait for the destination's reason, and for telling it ours.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, MigrationError>;

/// Runs `migration`. A panic in it becomes an error.
pub(super) fn caught<T>(migration: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(migration))
        .unwrap_or_else(|panic| Err(MigrationError::Panicked(text_of(&*panic))))
}

/// Ends the migration of `source` with this `result`. Afterwards dirty logging is off, the guest was told DONE to take
/// its pages back, and it runs if it is still here.
pub(super) fn end(
    source: &mut Source<'_>,
    params: &MigrationParams,
    mut link: Link,
    progress: &Progress,
    result: Result<MigrationReport>,
) -> Result<MigrationReport> {
    let owner = source.ownership.settle();
    let result = result.map_err(|error| match owner {
        Owner::Undecided if !matches!(error, MigrationError::HandedOverUnconfirmed(_)) => {
            MigrationError::HandedOverUnconfirmed(Box::new(error))
        }
        Owner::Here => cancelled_or(error, progress),
        _ => error,
    });
    let outcome = outcome(&result, owner);
    let stopped = put_source_back(source, params, outcome);
    if outcome == Outcome::Cancelled {
        // Whoever has cancelled does not wait for a destination that reads nothing.
        report(progress, MigrationState::Cancelled, &result, stopped);
        let why = MigrationError::Cancelled.to_string();
        link.stop.set_deadline(LAST_WORDS, "saying why");
        link.abort(&why);
        return result;
    }
    let result = match result {
        Ok(report) => {
            drop(link);
            Ok(report)
        }
        Err(error) => {
            link.stop.set_deadline(LAST_WORDS, "saying why");
            let error = told_by_peer(error, &mut link);
            // A destination that has or may have the guest must not be told that the migration failed.
            match owner {
                Owner::Here => link.abort(&error.to_string()),
                Owner::There | Owner::Undecided => drop(link),
            }
            Err(error)
        }
    };
    let state = match outcome {
        Outcome::Completed if has_kept_memory(&result) => MigrationState::HandedOverInPart,
        Outcome::Completed => MigrationState::Completed,
        Outcome::Cancelled => MigrationState::Cancelled,
        Outcome::Unconfirmed => MigrationState::HandedOverUnconfirmed,
        Outcome::Failed => MigrationState::Failed,
    };
    report(progress, state, &result, stopped);
    result
}

/// Ends the copying of `source` with this `result`. Afterwards dirty logging is off, the guest was told DONE to take its
/// pages back, and it runs here. Then `finish` makes a copy that has succeeded last.
pub(super) fn end_copy(
    source: &mut Source<'_>,
    params: &MigrationParams,
    progress: &Progress,
    result: Result<MigrationReport>,
    finish: impl FnOnce() -> Result<()>,
) -> Result<MigrationReport> {
    let result = result.map_err(|error| cancelled_or(error, progress));
    let outcome = match &result {
        Err(MigrationError::Cancelled) => Outcome::Cancelled,
        _ => Outcome::Failed,
    };
    // A trace has no other word for a guest that stays here.
    let stopped = put_source_back(source, params, outcome);
    let result = result.and_then(|report| {
        progress.update(|status| status.status = MigrationState::Syncing);
        // The copy is completed even if the guest cannot run on: then it is the only one.
        caught(finish)?;
        let total_ms = progress.started().elapsed().as_secs_f64() * 1000.0;
        Ok(MigrationReport { total_ms, ..report })
    });
    let result = match (result, &stopped) {
        (Ok(_), Some(reason)) => Err(MigrationError::Machine(MachineError {
            action: "let the guest run on after its copy, which is complete",
            reason: reason.clone(),
        })),
        (result, _) => result,
    };
    let state = match &result {
        Ok(_) => MigrationState::Completed,
        Err(MigrationError::Cancelled) => MigrationState::Cancelled,
        Err(_) => MigrationState::Failed,
    };
    report(progress, state, &result, stopped);
    result
}

/// The reason to report for a guest that stays here: a cancel, if there was one, and `error` otherwise. A cancel is refused from
/// now on.
fn cancelled_or(error: MigrationError, progress: &Progress) -> MigrationError {
    match !progress.commit() && progress.is_cancelled() {
        true => MigrationError::Cancelled,
        false => error,
    }
}

/// Lets the guest run on if it stays here, stops the logs, and tells the guest DONE. Returns why the guest cannot run.
fn put_source_back(
    source: &mut Source<'_>,
    params: &MigrationParams,
    outcome: Outcome,
) -> Option<String> {
    let mut stopped = None;
    if let Some(throttle) = &mut source.throttle {
        // Before the guest runs on: nobody must find it slow.
        if attempt("let the guest run at full speed", || throttle.set(0)).is_none() {
            source.trace.record(Event::Throttles(0));
        }
    }
    if matches!(outcome, Outcome::Failed | Outcome::Cancelled) {
        // It may be stopped.
        source.trace.record(Event::Resuming);
        stopped = attempt("let the guest run on", || source.machine.resume());
    }
    let hints = source.hints.as_deref_mut();
    let hints = hints.filter(|_| params.asks_the_guest());
    put_back(&mut source.logs, hints, &source.trace);
    source.trace.record(Event::End(outcome));
    stopped
}

fn report(
    progress: &Progress,
    state: MigrationState,
    result: &Result<MigrationReport>,
    stopped: Option<String>,
) {
    if progress.throttle_percent() > 0 {
        progress.happened(MigrationEvent::CpuThrottle { percentage: 0 });
    }
    progress.update(|status| {
        status.cpu_throttle_percentage = 0;
        status.vcpu_dirty_limit = None;
        status.total_time = progress.started().elapsed().as_millis() as u64;
        status.status = state;
        let why = result.as_ref().err().map(ToString::to_string);
        status.error_desc = match (why, stopped) {
            (Some(why), Some(stopped)) => Some(format!("{why}; the guest is stopped: {stopped}")),
            (why, _) => why,
        };
    });
}

/// Whether some memory of a guest that was handed over has not left.
fn has_kept_memory(result: &Result<MigrationReport>) -> bool {
    matches!(
        result,
        Err(MigrationError::MemoryGivenUp(_) | MigrationError::HalfSaved(_))
    )
}

fn outcome(result: &Result<MigrationReport>, owner: Owner) -> Outcome {
    match (owner, result) {
        (Owner::There, _) => Outcome::Completed,
        (Owner::Undecided, _) => Outcome::Unconfirmed,
        (Owner::Here, Err(MigrationError::Cancelled)) => Outcome::Cancelled,
        (Owner::Here, _) => Outcome::Failed,
    }
}

/// The peer may have sent its reason before the connection broke. If it closed a channel, the reason may still be on its way
/// on the control connection.
fn told_by_peer(error: MigrationError, link: &mut Link) -> MigrationError {
    let told = match error {
        MigrationError::Io(_) => link.peer.check_peer(),
        MigrationError::Channel(_) | MigrationError::Join(_) => link.peer.reason(),
        _ => return error,
    };
    match told {
        Err(told @ SectionError::Aborted(_)) => told.into(),
        _ => error,
    }
}
