// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command, and the jobs that the tests run inside the outer machine of the nested lane. Built with `--cfg
//! clause_switches`, it can also switch clauses of the rule off (`lanes/clause_switches.rs`).

mod against_qemu;
mod agent;
mod balloon;
mod linux_guest;
#[path = "../../shared/memory_files.rs"]
mod memory_files;
#[path = "../../shared/wire.rs"]
#[allow(
    clippy::unwrap_used,
    dead_code,
    reason = "it is the lanes', which use all of it"
)]
mod wire;

use std::process::ExitCode;

use linux_guest::perform;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(against_qemu::JOB) => against_qemu::main(arguments),
        Some(agent::JOB) => perform(agent::run),
        Some(balloon::JOB) => perform(balloon::run),
        _ => lacuna::main(),
    }
}
