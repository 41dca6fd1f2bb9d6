// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much the sandbox restricts.

use clap::ValueEnum;

/// The values of `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Everything is allowed that the user may do
    Off,
    /// The kernel logs forbidden system calls and allows them; files, networks and limits are as without a sandbox
    Log,
    /// The kernel ends the program; files and networks are out of reach where it has Landlock; limits are set
    Enforce,
}
