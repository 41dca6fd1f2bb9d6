// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The daemon `vhost-device-balloon`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use env_logger::Env;
use vhost_device_balloon::{Args, Config, args::CAPABILITIES, run};

fn main() -> ExitCode {
    env_logger::Builder::from_env(Env::default().default_filter_or("warn")).init();
    let args = Args::parse();
    if args.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    match Config::try_from(args).map_err(Into::into).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
