// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What it costs a guest to report its free pages: hints of its balloon driver, compared with maps of its agent.
//!
//! `cargo bench -p tests --bench agent_cost [-- [--epochs N] [--json]]`
//!
//! One stock Debian guest under QEMU's TCG (10.2 or newer) has driver and agent. A program in it ([`probe`]) allocates
//! pages all the time and reads the clock in between. Meanwhile, in turns, the driver is asked for hints, the agent for a
//! map, or nobody for anything. Our device asks the driver and this program asks the agent, so that neither does the
//! other's work.
//!
//! | module | what it is |
//! |---|---|
//! | [`probe`] | the program that measures in the guest |
//! | [`machine`] | the guest, its balloon device and its agent |
//! | [`agent`] | the host's end of the agent's port |
//! | [`figures`] | the figures, and their medians and ratios |

mod agent;
mod figures;
#[allow(dead_code, reason = "the plugged lane uses all of it")]
#[path = "../../lanes/plugged/guest.rs"]
mod guest;
#[path = "../../lanes/plugged/initramfs.rs"]
mod initramfs;
mod machine;
mod probe;
#[allow(dead_code, reason = "other tests use all of it")]
#[path = "../../shared/qemu_installation.rs"]
mod qemu_installation;

use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use figures::{Figures, Results, Teller};
use machine::Machine;

const MIB: u64 = 1 << 20;
/// A time limit for every step. The driver's hints take seconds.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the guest is watched after the last hint. A migration would still go on then, and the driver keeps its pages.
const HOLD: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let job = std::env::args().nth(1);
    let result = match job.as_deref() {
        // Our device is this program again, as the command `lacuna`.
        Some(machine::DEVICE_JOB) => return lacuna::main(),
        // The program that measures in the guest is this program, too.
        Some(probe::JOB) => probe::run(),
        _ => compare(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compare() -> Result<(), Box<dyn Error>> {
    let (epochs, json) = options(std::env::args().skip(1))?;
    let mut machine = match Machine::gather() {
        Ok(parts) => Machine::boot(parts)?,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return Ok(());
        }
    };
    let mut results = Results::default();
    for epoch in 1..=epochs {
        for teller in Teller::ALL {
            let figures = measure(&mut machine, teller, epoch)?;
            if !json {
                eprintln!("{epoch}. {teller:?}: {figures:?}");
            }
            results.add(teller, figures);
        }
    }
    if json {
        println!("{}", results.to_json());
    } else {
        print!("{results}");
    }
    Ok(())
}

/// Watches the guest while `teller` is asked.
fn measure(machine: &mut Machine, teller: Teller, epoch: u64) -> Result<Figures, Box<dyn Error>> {
    let probe = machine.start_probe();
    let began = Instant::now();
    let pages = match teller {
        Teller::Nobody => {
            thread::sleep(HOLD);
            0
        }
        Teller::Driver => machine.ask_driver()?,
        Teller::Agent => machine.ask_agent(epoch)?,
    };
    let took = began.elapsed();
    thread::sleep(HOLD);
    let figures = Figures::new(&probe.stop(machine), took, pages)?;
    if teller == Teller::Driver {
        machine.release_driver()?;
    }
    Ok(figures)
}

/// How many epochs of each kind, and whether to print JSON.
fn options(args: impl Iterator<Item = String>) -> Result<(u64, bool), Box<dyn Error>> {
    let (mut epochs, mut json) = (5, false);
    let mut args = args.filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = true,
            "--epochs" => epochs = args.next().ok_or("--epochs takes a number")?.parse()?,
            _ => {
                let usage =
                    "usage: cargo bench -p tests --bench agent_cost [-- [--epochs N] [--json]]";
                return Err(usage.into());
            }
        }
    }
    Ok((epochs, json))
}

/// Waits until `condition` gives something.
fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    spec_testing::within(PATIENCE, what, condition)
}
