// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a lazy restore is worth: the guest of a snapshot does the same job twice, once while its memory comes and once after it came.
//! An idle guest shows how much memory comes although nobody asks for it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::CompareError;
use super::parts::Host;
use super::plan::RunPlan;
use super::run::{GUEST_TIMEOUT, resident_bytes, whole_pass};
use crate::machine::{GuestStatus, RestoreStatus, Status};
use crate::trace::TraceArgs;

/// How long an idle guest is left alone.
const IDLE: Duration = Duration::from_secs(10);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    /// The guest's reports at the end.
    pub(super) guests: Vec<GuestStatus>,
    /// How the guest was restored lazily.
    pub(super) restore: Option<RestoreStatus>,
    /// From the start of the processes until the guest, whose memory comes while it runs, had checked all of it. In milliseconds.
    pub(super) lazy_ms: Option<f64>,
    /// The same when the memory was read before the guest ran.
    pub(super) eager_ms: Option<f64>,
    /// Bytes of an idle guest's memory that were there after [`IDLE`].
    pub(super) idle_resident_bytes: Option<u64>,
}

/// Restores the guest of the snapshot at `path`, whose report was `saved`, lazily and eagerly. It runs until it has checked all of its
/// memory; an idle one is restored lazily and left alone. The processes have no trace: another guest was restored from this file already.
pub(super) fn run(
    plan: &RunPlan,
    folder: &Path,
    path: &Path,
    saved: Option<&GuestStatus>,
) -> Result<Job, CompareError> {
    let mut job = Job::default();
    let began = Instant::now();
    let mut lazy = start(
        plan,
        folder,
        ("lazy", "lazy-device"),
        plan.run_lazily_args(path),
    )?;
    if plan.workload.idle {
        let restored = |status: &Status| Ok(status.restore.is_some());
        lazy.wait_until("the guest to run", GUEST_TIMEOUT, restored)?;
        thread::sleep(IDLE);
        job.idle_resident_bytes = Some(resident_bytes(&lazy)?);
        job.restore = lazy
            .wait_until("an answer", GUEST_TIMEOUT, restored)?
            .restore;
        return Ok(job);
    }
    let at_end = whole_pass(plan, &mut lazy, saved)?;
    job.lazy_ms = Some(milliseconds(began));
    drop(lazy);
    job.restore = at_end.restore;
    job.guests.extend(at_end.guest);
    let began = Instant::now();
    let mut eager = start(
        plan,
        folder,
        ("eager", "eager-device"),
        plan.run_eagerly_args(path),
    )?;
    let at_end = whole_pass(plan, &mut eager, saved)?;
    job.eager_ms = Some(milliseconds(began));
    job.guests.extend(at_end.guest);
    Ok(job)
}

fn start(
    plan: &RunPlan,
    folder: &Path,
    names: (&'static str, &'static str),
    args: Vec<std::ffi::OsString>,
) -> Result<Host, CompareError> {
    let untraced = TraceArgs::default();
    Host::start(
        &plan.program,
        folder,
        names,
        args,
        &[],
        plan.agent_port(),
        &untraced,
    )
}

fn milliseconds(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
