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

/// What is generated.
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
    /// Certificates to try TLS with: a CA, a destination's certificate and a source's, each with its key. Anybody who has a key is
    /// that side, so each key belongs on one host only. The CA's key is not kept
    Certificates {
        /// Folder to write them to: ca.pem, destination.pem, destination-key.pem, source.pem, source-key.pem. Nothing is
        /// overwritten
        folder: PathBuf,
        /// Names and addresses of the destination's host, joined by commas
        #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
        names: Vec<String>,
        /// Days for which they are valid
        #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
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
