// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command `lacuna`: jobs that run a guest, receive one, run its balloon device and migrate it; `compare`, which does all
//! of these and measures; and `bench`, which measures parts.
#![forbid(unsafe_code)]

pub mod args;
pub mod balloon;
pub mod bench;
pub mod certificates;
pub mod compare;
pub mod control;
pub mod convert;
mod dirty_rate;
mod figures;
mod follow;
pub mod gaps;
pub mod inspect;
pub mod jobs;
pub mod machine;
mod measured_on;
pub mod nested;
pub mod qmp;
mod reconcile;
pub mod serve;
pub mod size;
pub mod suite;
mod terminal;
pub mod trace;
mod waits;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use args::{Cli, Job};

/// Set in the environment of processes that this program starts from itself. They end when their parent ends.
pub(crate) const ENDS_WITH_PARENT: &str = "LACUNA_ENDS_WITH_PARENT";

/// Reads the command line and does the job. An error goes to standard error as one sentence.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    // A file that may not grow further is an error of its write then, and does not end the process with its guest.
    if let Err(error) = signal_hook::flag::register(libc::SIGXFSZ, Arc::new(AtomicBool::new(false)))
    {
        log::warn!("a limit of file sizes would end this process: {error}");
    }
    if std::env::var_os(ENDS_WITH_PARENT).is_some() {
        let kill = rustix::process::Signal::KILL;
        if let Err(error) = rustix::process::set_parent_process_death_signal(Some(kill)) {
            log::warn!("this process may outlive the one that started it: {error}");
        }
    }
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done if standard error is closed.
            let _ = writeln!(std::io::stderr(), "lacuna: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<(), Box<dyn Error>> {
    use control::Command;
    match cli.job {
        Job::Compare(args) if args.suite.is_meant() => suite::compare(&args)?,
        Job::Compare(args) => compare::compare(&args)?,
        Job::Bench(args) => bench::run(&args.job)?,
        Job::Run(args) => machine::run(args)?,
        Job::Receive(args) => machine::receive(args)?,
        Job::Send(args) => jobs::send(&args)?,
        Job::Inspect(args) => inspect::inspect(&args)?,
        Job::Convert(args) => convert::convert(&args)?,
        Job::Reconcile(args) => reconcile::reconcile(&args)?,
        Job::Serve(args) => serve::serve(args)?,
        Job::Status(args) if args.follow => follow::follow(&args)?,
        Job::Status(args) => jobs::status(&args)?,
        Job::DirtyRate(args) => dirty_rate::dirty_rate(&args)?,
        Job::Set(args) => {
            let command = Command::MigrateSetParameters(args.tuning());
            jobs::tell(&args.control, &command)?;
        }
        Job::Postcopy(args) => jobs::tell(&args.control, &Command::MigrateStartPostcopy)?,
        Job::Recover(args) => jobs::recover(&args)?,
        Job::SaveHalf(args) => jobs::save_half(&args)?,
        Job::Cancel(args) => jobs::tell(&args.control, &Command::MigrateCancel)?,
        Job::Cont(args) if args.destination_owns => {
            jobs::tell(&args.control, &Command::DestinationOwns)?;
        }
        Job::Cont(args) => jobs::tell(&args.control, &Command::Cont)?,
        Job::Resume(args) if args.source_owns => jobs::tell(&args.control, &Command::SourceOwns)?,
        Job::Resume(args) => jobs::tell(&args.control, &Command::Resume)?,
        Job::Quit(args) => jobs::quit(&args)?,
        Job::Balloon(args) => balloon::run(args.job)?,
        Job::Trace(args) => trace::run(&args.job)?,
        Job::Generate(args) => jobs::generate(&args.what)?,
    }
    Ok(())
}
