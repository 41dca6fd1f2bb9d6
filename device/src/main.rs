// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon `vhost-device-balloon`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use vhost_device_balloon::Args;
use vhost_device_balloon::args::CAPABILITIES;
use vhost_device_balloon::daemon::logging;

fn main() -> ExitCode {
    // By the conventions for vhost-user programs, this option works whatever else is on the command line.
    if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    logging::init();
    match Args::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
