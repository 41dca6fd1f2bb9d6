// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SIGTERM and SIGINT: the first asks for an orderly end, the second ends the process at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

const ENDING: [i32; 2] = [SIGTERM, SIGINT];

/// Waits for signals.
#[derive(Debug)]
pub struct EndSignals(Signals);

impl EndSignals {
    /// Handles these signals from now on, so that they do not end the process.
    ///
    /// # Errors
    /// If there is no file descriptor left.
    pub fn register() -> io::Result<Self> {
        let again = Arc::new(AtomicBool::new(false));
        for signal in ENDING {
            // In this order: the first signal finds the flag as it was.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
            flag::register(signal, Arc::clone(&again))?;
        }
        Ok(Self(Signals::new(ENDING)?))
    }

    /// Waits for the first signal and returns its name.
    pub fn wait(mut self) -> &'static str {
        match self.0.forever().next() {
            Some(SIGINT) => "SIGINT",
            _ => "SIGTERM",
        }
    }
}
