// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench file`: saves and restores in turns, beside dd and QEMU.

mod arm;
mod dd;
mod engine;
mod picture;
mod qemu;
mod record;

use self::arm::{Arm, Bench};
use self::record::{ArmRecord, Report};
use super::BenchError;
use super::content::Content;
use super::show;
use crate::args::FileArgs;
use crate::measured_on::Machine;
use crate::terminal;

/// Runs every arm in turns and prints what was measured.
///
/// # Errors
/// [`BenchError`]; [`BenchError::Lost`] if any page was wrong.
pub(super) fn run(args: &FileArgs) -> Result<(), BenchError> {
    let machine = Machine::now();
    let folder = tempfile::Builder::new()
        .prefix("lacuna-bench-")
        .tempdir_in(&args.folder)
        .map_err(BenchError::io("cannot make a folder for the files"))?;
    let content = Content::new(args.size, args.content, args.seed)?;
    content.keep_every(args.stride)?;
    let bench = Bench::new(folder.path(), content);
    let mut arms: Vec<(ArmRecord, Arm)> = (Arm::all(args).into_iter())
        .map(|arm| (ArmRecord::of(&arm), arm))
        .collect();
    let progress = terminal::progress_bar(arms.len() * args.runs.get() as usize, args.json);
    for turn in 0..args.runs.get() {
        for (record, arm) in &mut arms {
            if record.skipped.is_none() {
                progress.set_message(record.name());
                match arm.run(&bench, turn == 0) {
                    Ok(sample) => record.samples.push(sample),
                    Err(why) if arm.may_be_missing() => record.skipped = Some(why.to_string()),
                    Err(error) => return Err(error),
                }
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let records = arms.into_iter().map(|(record, _)| record).collect();
    show(args, &Report::new(args, machine, records))
}

fn show(args: &FileArgs, report: &Report) -> Result<(), BenchError> {
    show::show(
        report,
        args.json,
        Report::table,
        args.picture.as_deref(),
        picture::draw,
    )?;
    match report.lost() {
        None => Ok(()),
        Some((arm, pages)) => Err(BenchError::Lost { arm, pages }),
    }
}
