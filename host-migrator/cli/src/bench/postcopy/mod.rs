// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench postcopy`: the arms in turns, so that what else the machine does meets all of them.
//!
//! | module | what it is |
//! |---|---|
//! | `arm` | what each arm does |
//! | `touching` | threads that touch missing pages and wait |
//! | `ping_pong` | a request and its answer over TCP, and nothing else |
//! | `engine` | a guest that was handed over before its memory |
//! | `hints` | hints for every other page |
//! | `long_link` | a link on which bytes take their time |
//! | `record` | what was measured, as JSON and as a table |

mod arm;
mod engine;
mod hints;
mod long_link;
mod ping_pong;
mod record;
mod touching;

use self::arm::Bench;
use self::record::{ArmRecord, Report};
use super::content::Content;
use super::{BenchError, show};
use crate::args::{ContentKind, PostcopyArgs};
use crate::measured_on::Machine;
use crate::terminal;

/// Runs every arm in turns and prints what was measured.
///
/// # Errors
/// [`BenchError`]; [`BenchError::Lost`] if any page was wrong.
pub(super) fn run(args: &PostcopyArgs) -> Result<(), BenchError> {
    let machine = Machine::now();
    let bench = Bench::new(
        args,
        Content::new(args.size, ContentKind::Random, args.seed)?,
    );
    let mut arms: Vec<ArmRecord> = Vec::new();
    for arm in &args.arms {
        if arms.iter().all(|known| known.arm != *arm) {
            arms.push(ArmRecord::of(*arm));
        }
    }
    let progress = terminal::progress_bar(arms.len() * args.runs.get() as usize, args.json);
    for turn in 0..args.runs.get() {
        for record in &mut arms {
            progress.set_message(record.arm.name());
            record.samples.push(bench.run(record.arm, turn)?);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let report = Report::new(args, machine, arms);
    show::show(&report, args.json, Report::text, None, |_| String::new())?;
    match report.lost() {
        None => Ok(()),
        Some((arm, pages)) => Err(BenchError::Lost {
            arm: arm.name(),
            pages,
        }),
    }
}
