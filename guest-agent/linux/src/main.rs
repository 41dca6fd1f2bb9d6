// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program `lacuna-agent`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use env_logger::Env;
use lacuna_agent::Args;
use lacuna_agent::port::Port;
use lacuna_agent::session::{Session, SessionError};

/// How long to wait before the port is tried again: a host that is not there comes when it comes.
const AGAIN: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    env_logger::Builder::from_env(Env::default().default_filter_or("info")).init();
    let args = Args::parse();
    let result = if args.print {
        lacuna_agent::summary::print()
    } else {
        serve(&args)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves the host for ever, or once; comes back when the host does.
fn serve(args: &Args) -> Result<(), SessionError> {
    let mut session = Session::new(args.preparation())?;
    session.explain();
    let mut waiting = false;
    loop {
        let served = Port::open(&args.port)
            .map_err(SessionError::from)
            .and_then(|port| {
                log::info!("connected to {}", args.port);
                waiting = false;
                session.serve(&port)
            });
        match served {
            _ if args.once => return served,
            Err(error @ SessionError::PageFlags(_)) => return Err(error),
            Err(error) if !waiting => log::warn!("{}: {error}; waiting for the host", args.port),
            Ok(()) if !waiting => log::info!("the host has gone; waiting for it"),
            _ => {}
        }
        waiting = true;
        thread::sleep(AGAIN);
    }
}
