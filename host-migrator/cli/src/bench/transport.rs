// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna bench transport`: the arms in turns, so that what else the machine does meets all of them.

use spec::PAGE_SIZE;

use super::BenchError;
use super::arm::{Arm, arm};
use super::content::Content;
use super::record::{ArmRecord, Report};
use super::{link, picture, show};
use crate::args::TransportArgs;
use crate::measured_on::Machine;
use crate::terminal;

/// Runs every arm in turns and prints what was measured.
///
/// # Errors
/// [`BenchError`]; [`BenchError::Lost`] if any page was wrong.
pub(super) fn run(args: &TransportArgs) -> Result<(), BenchError> {
    if let Some(mbit) = args.link_mbit {
        link::limited_to(mbit)?;
    }
    if args.size.0 / PAGE_SIZE < u64::from(args.channels) {
        return Err(BenchError::FewPages {
            size: args.size,
            channels: args.channels,
        });
    }
    let machine = Machine::now();
    let mut arms: Vec<(ArmRecord, Option<Box<dyn Arm>>)> = Vec::new();
    for name in &args.arms {
        if arms.iter().any(|(known, _)| known.arm == *name) {
            continue;
        }
        let (able, skipped) = match arm(*name, args.channels) {
            Ok(arm) => (Some(arm), None),
            Err(why) => (None, Some(why.to_string())),
        };
        let record = ArmRecord {
            arm: *name,
            median_gb_per_s: None,
            samples: Vec::new(),
            skipped,
        };
        arms.push((record, able));
    }
    let content = Content::new(args.size, args.content, args.seed)?;
    let able = arms.iter().filter(|(_, arm)| arm.is_some()).count();
    let progress = terminal::progress_bar(able * args.runs.get() as usize, args.json);
    for _ in 0..args.runs.get() {
        for (record, arm) in &mut arms {
            let Some(arm) = arm else {
                continue;
            };
            progress.set_message(record.arm.name());
            record.samples.push(arm.run(&content)?);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let records = arms.into_iter().map(|(record, _)| record).collect();
    show(args, &Report::new(args, machine, records))
}

fn show(args: &TransportArgs, report: &Report) -> Result<(), BenchError> {
    let text = |report: &Report| format!("{}\n\n{}", headline(args, report), report.table());
    show::show(
        report,
        args.json,
        text,
        args.picture.as_deref(),
        picture::draw,
    )?;
    match report.lost() {
        None => Ok(()),
        Some((arm, pages)) => Err(BenchError::Lost {
            arm: arm.name(),
            pages,
        }),
    }
}

fn headline(args: &TransportArgs, report: &Report) -> String {
    let plural = |count: u64| if count == 1 { "" } else { "s" };
    format!(
        "{} of {} memory, {} connection{}{}, {} turn{}; {} processors, Linux {}, load {:.2} before",
        args.size,
        report.content,
        args.channels,
        plural(args.channels.into()),
        (args.link_mbit).map_or_else(String::new, |mbit| format!(" on a link of {mbit} Mbit/s")),
        args.runs,
        plural(args.runs.get().into()),
        report.machine.processors,
        report.machine.kernel,
        report.machine.load_before
    )
}
