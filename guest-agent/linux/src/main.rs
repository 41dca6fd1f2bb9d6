// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program `lacuna-agent`.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use env_logger::Env;
use lacuna_agent::port::{Address, Port};
use lacuna_agent::session::{Session, SessionError};
use lacuna_agent::{Args, key};

/// How long to wait before the port is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How many different reasons are logged until the host asks something.
const MAX_SAID: usize = 16;

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

/// Serves the host for ever, or once. Tries again when the host disconnects.
fn serve(args: &Args) -> Result<(), SessionError> {
    let key = args.key.as_deref().map(key::read).transpose()?;
    let mut session = Session::new(args.preparation(), key)?;
    session.explain();
    let mut said = Said::default();
    loop {
        let served = Port::open(&args.port)
            .map_err(SessionError::from)
            .and_then(|port| session.serve(&port));
        if session.was_asked() {
            said = Said::default();
        }
        match served {
            _ if args.once => return served,
            Err(error @ SessionError::PageFlags(_)) => return Err(error),
            Err(error) => said.once(&args.port, error.to_string()),
            Ok(()) => said.once(&args.port, "the host has hung up".into()),
        }
        thread::sleep(AGAIN);
    }
}

/// The reasons that were logged since the host last asked something. A port can be opened although no program of the host
/// has its other end open, and is then tried twice a second. So each reason is logged once.
#[derive(Default)]
struct Said(Vec<String>);

impl Said {
    fn once(&mut self, port: &Address, why: String) {
        if self.0.len() < MAX_SAID && !self.0.contains(&why) {
            log::warn!("{port}: {why}; waiting for the host");
            self.0.push(why);
        }
    }
}
