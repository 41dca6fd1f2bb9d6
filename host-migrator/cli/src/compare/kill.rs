// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run whose connection breaks for good after the hand-over, and in which one machine is killed when it has saved its half. After the
//! source's death the destination goes on with its file; after the destination's, a guest is made of both halves. The guest is held once,
//! so that every page can be compared, and once it runs and checks its memory itself.

use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use host_migrator::destination::PostcopyPhase;
use host_migrator::snapshot::{HalfFile, open_storage, reconcile};
use host_migrator::{DirectIo, GuestRam, MigrationBitmap, SnapshotTarget};
use serde::{Deserialize, Serialize};
use spec::PAGE_SIZE;

use super::CompareError;
use super::early::{Early, until_broken, until_handed_over};
use super::oracle::{self, PageStates, Verdict};
use super::parts::Host;
use super::plan::RunPlan;
use super::record::Record;
use super::run::{GUEST_TIMEOUT, check_trace, memory_of, whole_pass};
use super::steps;
use crate::args::{CutKind, GuestKind, Kill, KilledSide};
use crate::control::{Command, HalfSaved, RecoverArguments, SaveHalfArguments};
use crate::machine::{GuestStatus, MachineState, Status};
use crate::size::Size;

/// What became of a guest one of whose machines was killed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Killed {
    /// The machine that was killed.
    pub side: KilledSide,
    /// How the guest has gone on.
    pub ended: KillEnd,
    /// Pages that were missing at the destination when the connection broke, in the run whose guest runs.
    pub pages_missing: u64,
    /// Pages of content in the half that was needed from the source.
    pub pages_from_source: u64,
    /// From the break until the guest had all of its memory, in milliseconds.
    pub ms: f64,
    /// Pages of memory that were compared with the source's, in the run whose guest is held: all.
    pub pages_compared: u64,
    /// Pages that were wrong.
    pub pages_wrong: u64,
}

/// How a guest goes on after the death of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillEnd {
    /// All memory had come before the connection broke: nothing was missed.
    Completed,
    /// The destination went on with the source's file. The guest was not started anew.
    File,
    /// A guest was made of both halves.
    Reconciled,
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            KilledSide::Source => "source",
            KilledSide::Destination => "destination",
        };
        let missing = Size(self.pages_missing * PAGE_SIZE);
        match self.ended {
            KillEnd::Completed => {
                return write!(f, "{side} not killed: all memory had come before");
            }
            KillEnd::File => write!(f, "{side} killed, {missing} missing: its file was used")?,
            KillEnd::Reconciled => {
                write!(
                    f,
                    "{side} killed, {missing} missing: a guest was made of both halves"
                )?;
            }
        }
        let (wrong, compared) = (self.pages_wrong, self.pages_compared);
        write!(
            f,
            ", whole after {:.0} ms, {wrong}/{compared} wrong",
            self.ms
        )
    }
}

/// What became of the guests of `records` whose machines were killed, a line each.
pub(super) fn lines(records: &[Record]) -> String {
    let killed = records.iter().filter_map(|record| record.killed.as_ref());
    killed.map(|killed| format!("{killed}\n")).collect()
}

/// Whether `--kill` can be used with `guest`.
pub(super) fn check(guest: GuestKind) -> Result<(), CompareError> {
    match guest {
        GuestKind::Bare => Ok(()),
        GuestKind::Linux => Err(CompareError::Flags(
            "--kill compares what the guest uses with what the killed machine had, and only the bare guest says what it uses",
        )),
    }
}

/// Carries `kill` out twice in `folder`. Returns what became of the guest, and its last report.
pub(super) fn run(
    plan: &RunPlan,
    folder: &Path,
    kill: Kill,
) -> Result<(Killed, GuestStatus), CompareError> {
    let (held, _) = once(plan, &folder.join("killed-held"), kill, true)?;
    let (live, guest) = once(plan, &folder.join("killed"), kill, false)?;
    let killed = Killed {
        pages_compared: held.pages_compared,
        pages_wrong: held.pages_wrong,
        ..live
    };
    Ok((killed, guest))
}

fn once(
    plan: &RunPlan,
    folder: &Path,
    kill: Kill,
    hold: bool,
) -> Result<(Killed, GuestStatus), CompareError> {
    let Early {
        mut source,
        mut destination,
        line,
        trace,
        ..
    } = Early::begin(plan, folder, hold, true)?;
    let mut killed = Killed {
        side: kill.side,
        ended: KillEnd::Completed,
        pages_missing: 0,
        pages_from_source: 0,
        ms: 0.0,
        pages_compared: 0,
        pages_wrong: 0,
    };
    let handed_over = until_handed_over(&mut source)?;
    std::thread::sleep(kill.after);
    let began = Instant::now();
    line.iter().for_each(|line| line.cut(CutKind::Close));
    // The killed machine's memory is there as long as it is mapped here.
    let (before, _) = memory_of(&source)?;
    let broken = handed_over && until_broken(&mut source, &mut destination)?.is_some();
    let mut host = match (broken, kill.side) {
        (false, _) => destination,
        (true, side) => {
            let status: Status = destination.client()?.ask(&Command::Status)?;
            let paging = status.postcopy.map(|postcopy| postcopy.paging);
            killed.pages_missing = paging.map_or(0, |paging| paging.missing);
            match side {
                KilledSide::Source => {
                    killed.ended = KillEnd::File;
                    killed.pages_from_source = save_half(&source, folder, "source-half")?;
                    source.machine.kill();
                    let uri = uri(folder, "source-half");
                    let recover = Command::MigrateRecover(RecoverArguments { uri });
                    let mut client = destination.client()?;
                    let _: serde_json::Value = client.ask(&recover)?;
                    destination
                }
                KilledSide::Destination => {
                    killed.ended = KillEnd::Reconciled;
                    save_half(&destination, folder, "destination-half")?;
                    destination.machine.kill();
                    save_half(&source, folder, "source-half")?;
                    killed.pages_from_source = make_whole(folder)?;
                    let args = plan.run_reconciled_args(&folder.join("whole"), hold);
                    // Another guest in the same trace.
                    let untraced = crate::trace::TraceArgs::default();
                    steps::start_destination(plan, folder, "reconciled", args, &untraced)?
                }
            }
        }
    };
    let arrived = host.wait_until("all memory", GUEST_TIMEOUT, |status| {
        let came = (status.postcopy.as_ref()).map(|it| it.phase == PostcopyPhase::Completed);
        let state = status.machine;
        let is_here = matches!(state, MachineState::Held | MachineState::Running);
        Ok(came.unwrap_or(is_here))
    })?;
    killed.ms = began.elapsed().as_secs_f64() * 1000.0;
    let mut guest = GuestStatus::default();
    if hold {
        let verdict = compare(&before, &host)?;
        killed.pages_compared = verdict.pages_compared;
        killed.pages_wrong = verdict.pages_wrong;
        for page in &verdict.examples {
            log::error!("{plan}: page {:#x} is wrong: {:?}", page.pfn, page.why);
        }
    } else {
        let checked = whole_pass(plan, &mut host, arrived.guest.as_ref())?;
        guest = checked.guest.unwrap_or_default();
    }
    trace.trace.as_deref().map(check_trace).transpose()?;
    Ok((killed, guest))
}

/// Compares the memory of `host`, whose guest is held, with what the source had when it handed the guest over.
fn compare(source: &GuestRam, host: &Host) -> Result<Verdict, CompareError> {
    let (ram, _) = memory_of(host)?;
    let truth = PageStates::read(source)?;
    // Any page may have been left out that the guest does not use.
    let may_differ = MigrationBitmap::new(source.bitmap_pages());
    let regions = source.regions().iter();
    regions.for_each(|region| may_differ.insert(*region));
    Ok(oracle::compare(source, &ram, &may_differ, Some(&truth))?)
}

fn uri(folder: &Path, name: &str) -> String {
    format!("file:{}", folder.join(name).display())
}

/// Has `host` save its half. Returns how many pages of content it has.
fn save_half(host: &Host, folder: &Path, name: &str) -> Result<u64, CompareError> {
    let uri = uri(folder, name);
    let command = Command::SaveHalf(SaveHalfArguments { uri });
    let mut client = host.client()?.without_deadline()?;
    let saved: HalfSaved = client.ask(&command)?;
    Ok(saved.pages)
}

/// Makes one snapshot of the halves in `folder`. Returns how many pages came from the source's.
fn make_whole(folder: &Path) -> Result<u64, CompareError> {
    let failed = |error: &dyn std::fmt::Display| CompareError::Migration(error.to_string());
    let target = |name: &str| SnapshotTarget {
        path: folder.join(name),
        offset: None,
    };
    let halves = ["source-half", "destination-half"].map(|name| HalfFile::open(&target(name)));
    let [source, destination] = halves;
    let halves = [
        source.map_err(|error| failed(&error))?,
        destination.map_err(|error| failed(&error))?,
    ];
    let output = || open_storage(&target("whole"), DirectIo::Auto);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let made = reconcile(&halves, output, threads, &|_| ());
    Ok(made.map_err(|error| failed(&error))?.from_source)
}
