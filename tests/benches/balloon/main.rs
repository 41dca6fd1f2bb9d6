// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our balloon under QEMU: what it costs the host, and how long it delays the guest.
//!
//! `cargo bench -p tests --bench balloon [-- --runs N]`; with 0 runs only the gaps are measured.
//!
//! A stock Debian kernel runs under QEMU's TCG (10.2 or newer, which can attach a vhost-user device of any type;
//! `LACUNA_QEMU` names the program). It has written most of its memory and freed it again.
//!
//! | module | question |
//! |---|---|
//! | [`inflate`] | what does giving 1 GiB back cost, with QEMU's own balloon and with ours? |
//! | [`stalls`] | how long is the guest delayed while it reports and hints? |

mod costs;
mod device;
mod inflate;
#[path = "../../shared/memory_files.rs"]
mod memory_files;
mod qemu;
mod stalls;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// How long a guest may take to boot and fill its memory, or to give it back.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    // Our device is this program again, as the command `lacuna`.
    if std::env::args()
        .nth(1)
        .is_some_and(|job| job == device::JOB)
    {
        return lacuna::main();
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
    let runs = runs(std::env::args().skip(1))?;
    let program = match qemu::find() {
        Ok(program) => program,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(());
        }
    };
    if let Err(why) = lacuna::nested::available() {
        println!("skipped: {why}");
        return Ok(());
    }
    if runs > 0 {
        inflate::compare(&program, runs)?;
        println!();
    }
    stalls::compare(&program)
}

fn runs(args: impl Iterator<Item = String>) -> Result<u32, Box<dyn Error>> {
    // Cargo itself adds --bench.
    let args: Vec<String> = args.filter(|arg| arg != "--bench").collect();
    match &args[..] {
        [] => Ok(3),
        [flag, runs] if flag == "--runs" => Ok(runs.parse()?),
        _ => Err("usage: cargo bench -p tests --bench balloon [-- --runs N]".into()),
    }
}
