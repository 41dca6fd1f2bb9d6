// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much the sandbox restricts.

use clap::ValueEnum;

/// The values of `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// No restrictions
    Off,
    /// Forbidden system calls are logged and allowed; files, networks and limits are not restricted
    Log,
    /// Forbidden system calls end the program; Landlock, if the kernel has it, blocks files and networks; limits are set
    Enforce,
}
