// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command, built the way the tests need it: clauses of the rule can be switched off.

use std::process::ExitCode;

fn main() -> ExitCode {
    lacuna::main()
}
