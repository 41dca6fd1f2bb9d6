// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command `lacuna`; all of it is in the library beside this file.

use std::process::ExitCode;

fn main() -> ExitCode {
    lacuna::main()
}
