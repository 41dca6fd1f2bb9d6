// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compares our migration with QEMU's: both with KVM and the hints of the same stock Linux guest, on the same machine in
//! the same run.
//!
//! `cargo bench -p tests --bench against_qemu [-- MORE ARGUMENTS OF compare]`; `LACUNA_QEMU` names another QEMU than the one
//! that the tests use.
//!
//! There are two guests. One has filled and freed memory. The other has also fragmented it, so that free memory is in
//! pieces of one page, which the driver cannot hint.

#[path = "../shared/against_qemu.rs"]
mod against_qemu;
#[path = "../examples/lacuna-under-test/against_qemu/mod.rs"]
mod job;
#[path = "../shared/qemu_installation.rs"]
mod qemu_installation;

use std::error::Error;
use std::process::ExitCode;

use against_qemu::Peer;
use serde_json::Value;

const GUEST_BYTES: u64 = 1 << 30;
/// The flags of both guests. There is a bandwidth limit because otherwise the emulated processor would be busy with little
/// besides copying.
const COMMON: [&str; 8] = [
    "--memory",
    "1G",
    "--dirty-rate",
    "1M",
    "--churn",
    "0",
    "--max-bandwidth",
    "64M",
];
/// Our migrations: without hints, with the driver's, the agent's, and both.
const OURS: [&[&str]; 4] = [
    &["--hints", "off"],
    &["--hints", "on", "--sources", "driver,holes,zero"],
    &["--hints", "on", "--sources", "agent,holes,zero"],
    &["--hints", "on", "--sources", "driver,agent,holes,zero"],
];
/// The guests, and what they do with their memory before they are migrated. One uses 256 MiB and has freed most of the
/// rest. The other does the same, and uses every second page of half of its memory.
const GUESTS: [(&str, [&str; 6]); 2] = [
    (
        "filled and freed",
        ["--in-use", "256M", "--freed", "512M", "--fragment", "0"],
    ),
    (
        "and fragmented",
        ["--in-use", "64M", "--freed", "704M", "--fragment", "512M"],
    ),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    // In the machine that runs the guests this program is the job, and then the command `lacuna`.
    match arguments.next() {
        Some(first) if first == job::JOB => return job::main(arguments),
        Some(first) if !first.starts_with('-') => return lacuna::main(),
        _ => {}
    }
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<(), Box<dyn Error>> {
    // Cargo itself adds --bench.
    let more: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let more = more.iter().map(String::as_str);
    let peer = match Peer::find() {
        Ok(peer) => peer,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    println!(
        "| guest | migrator | in use MB | on the wire MB | ÷ in use | total ms | downtime ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (guest, workload) in GUESTS {
        let arguments: Vec<&str> = COMMON
            .into_iter()
            .chain(workload)
            .chain(more.clone())
            .collect();
        let program = std::env::current_exe()?;
        for record in peer.migrate(&program, GUEST_BYTES, &arguments, &OURS)? {
            println!("| {guest} | {}", row(&record, peer.version()));
        }
    }
    Ok(())
}

/// The cells of one migration, all but the guest's.
fn row(record: &Value, qemu: &str) -> String {
    let number = |name: &str| record[name].as_f64().unwrap_or(f64::NAN);
    let text = |name: &str| record[name].as_str().unwrap_or_default();
    let (in_use, wire) = (number("in_use_bytes"), number("wire_bytes"));
    let migrator = match text("migrator") {
        "qemu" => format!("QEMU {qemu}, hints {}", text("hints")),
        _ if text("hints") == "off" => "lacuna, hints off".to_owned(),
        _ => format!("lacuna, hints of {}", told_by(record)),
    };
    let wrong = number("guest_wrong");
    // A wrong page must be conspicuous.
    let verdict = if wrong == 0.0 {
        String::new()
    } else {
        format!(" **{wrong} wrong stamps**")
    };
    format!(
        "{migrator} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} |{verdict}",
        in_use / 1e6,
        wire / 1e6,
        wire / in_use,
        number("total_ms"),
        number("downtime_ms"),
    )
}

/// Which sources in the guest gave hints.
fn told_by(record: &Value) -> String {
    let sources = record["sources"].as_array().into_iter().flatten();
    let told = sources
        .filter_map(Value::as_str)
        .filter(|source| ["driver", "agent"].contains(source));
    told.collect::<Vec<_>>().join(" and ")
}
