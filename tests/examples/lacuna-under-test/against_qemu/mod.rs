// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrates the same Linux guest by QEMU with KVM, without and with QEMU's free page hints, and then by this program, with
//! the same workload, seeds, bandwidth and downtime limit, over a unix socket. Prints a JSON object for each migration,
//! with the names of `compare --json`.

mod guest;

use std::error::Error;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use lacuna::args::{Cli, CompareArgs, Job};
use lacuna::machine::guest_parameters;
use serde_json::{Value, json};

use guest::{Guest, Program};

type Failure = Box<dyn Error>;

/// The job's name.
pub const JOB: &str = "against-qemu";

/// The arguments of `compare` for guest, migration and report.
const COMPARE: [&str; 6] = [
    "compare",
    "--guest",
    "linux",
    "--transport",
    "unix",
    "--json",
];
/// The separator before the arguments of each comparison.
const ONE_COMPARISON: &str = "+";
/// The limit for QEMU if there is to be none, because QEMU's default is low.
const NO_LIMIT: u64 = 100 << 30;
/// How long the guest works before it is migrated, as in `compare`.
const SETTLE: Duration = Duration::from_millis(300);

/// Does the job. The first argument is QEMU's folder. The others are for `compare`: first those of all migrations, then
/// those of each of our comparisons after a `+`.
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let qemu = PathBuf::from(arguments.next().unwrap_or_default());
    match run(qemu, arguments.collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(qemu: PathBuf, arguments: Vec<String>) -> Result<(), Failure> {
    let mut parts = arguments.split(|argument| argument == ONE_COMPARISON);
    let mut common = COMPARE.map(str::to_owned).to_vec();
    common.extend_from_slice(parts.next().unwrap_or_default());
    let command_line = ["lacuna".to_owned()].into_iter().chain(common.clone());
    let Job::Compare(args) = Cli::try_parse_from(command_line)?.job else {
        return Err("these are no arguments of compare".into());
    };
    let program = Program::in_folder(qemu)?;
    let version = program.version()?;
    for run in 0..u64::from(args.runs.unwrap_or(1)) {
        for hints in ["off", "on"] {
            let mut args = args.clone();
            args.workload.seed = args.workload.seed.wrapping_add(run);
            eprintln!("{version}, hints {hints}, seed {}", args.workload.seed);
            println!("{}", migrate(&program, &args, hints)?);
        }
    }
    for comparison in parts {
        eprintln!("lacuna {}", comparison.join(" "));
        compare_ourselves(&[&common, comparison].concat())?;
    }
    Ok(())
}

/// Migrates a guest from one QEMU to another.
fn migrate(program: &Program, args: &CompareArgs, hints: &str) -> Result<Value, Failure> {
    let folder = tempfile::tempdir()?;
    let memory = args.guest.memory.0;
    let start = |name, workload: &str, incoming| {
        Guest::start(
            program,
            folder.path().join(name),
            memory,
            hints,
            workload,
            incoming,
        )
    };
    let mut source = start("source", &guest_parameters(&args.workload), None)?;
    let stream = format!("unix:{}", folder.path().join("stream").display());
    let mut destination = start("destination", "", Some(&stream))?;
    source.wait("the guest to be ready", |report| report["ready"] == true)?;
    std::thread::sleep(SETTLE);
    let before = source.report().unwrap_or_default();

    let limits = json!({
        "max-bandwidth": args.migration.max_bandwidth.map_or(NO_LIMIT, |limit| limit.0),
        "downtime-limit": args.migration.downtime_limit.as_millis() as u64,
    });
    source.qmp()?.ask("migrate-set-parameters", limits)?;
    destination.qmp()?;
    source.qmp()?.ask("migrate", json!({ "uri": stream }))?;
    let ended = source.end_of_migration()?;

    // The pass of the check that was under way at the source does not count.
    let first = destination.wait("a report at the destination", |_| true)?;
    let passes = |report: &Value| report["full-passes"].as_u64().unwrap_or(0);
    let checked = destination.wait("the guest to check its memory", |report| {
        passes(report) >= passes(&first) + 2 || report["wrong"] != 0
    })?;
    let free = before["free-bytes"].as_u64().unwrap_or(0);
    let ram = &ended["ram"];
    Ok(json!({
        "migrator": "qemu",
        "hints": hints,
        "memory_bytes": memory,
        "in_use_bytes": memory.saturating_sub(free),
        "wire_bytes": ram["transferred"],
        "total_ms": ended["total-time"],
        "downtime_ms": ended["downtime"],
        "rounds": ram["dirty-sync-count"],
        "pages_sent": ram["normal"],
        "pages_zero": ram["duplicate"],
        "guest_checks": checked["checks"],
        "guest_wrong": checked["wrong"],
    }))
}

/// Runs `lacuna compare` with these arguments and passes its records on.
fn compare_ourselves(compare: &[String]) -> Result<(), Failure> {
    let output = Command::new(std::env::current_exe()?)
        .args(compare)
        .stderr(Stdio::inherit())
        .output()?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let mut record: Value = serde_json::from_str(line)?;
        record["migrator"] = "lacuna".into();
        println!("{record}");
    }
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("lacuna compare ended with {}", output.status).into())
    }
}
