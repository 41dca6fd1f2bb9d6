// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command, built the way the tests need it: clauses of the rule can be switched off, and there is one job
//! more, which must happen inside the outer machine of the nested lane.

mod balloon;
#[path = "../../shared/memory_files.rs"]
mod memory_files;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(balloon::JOB) {
        return balloon::main(arguments.next());
    }
    lacuna::main()
}
