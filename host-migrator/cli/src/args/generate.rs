// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flags of `lacuna generate`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `lacuna generate`
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// What to write
    #[command(subcommand)]
    pub what: Generated,
}

/// What is generated from the definition of the command line.
#[derive(Clone, Debug, Subcommand)]
pub enum Generated {
    /// Manual pages: one for each job, and one for vhost-device-balloon
    Man {
        /// Folder to write them to
        folder: PathBuf,
    },
    /// Shell completions, on standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
        /// The program to complete
        #[arg(long, value_name = "NAME", default_value = "lacuna")]
        program: ProgramName,
    },
}

/// A program that completions can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProgramName {
    /// This program
    Lacuna,
    /// The balloon device's daemon
    VhostDeviceBalloon,
}
