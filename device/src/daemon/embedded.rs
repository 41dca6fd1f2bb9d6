// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device in a process that handles signals, sandbox and log itself.

use std::sync::mpsc;

use super::device::Prepared;
use super::error::{DaemonError, DaemonEvent};
use super::service_manager::Activation;
use crate::args::Config;

/// Runs one device in the process that this is, until its only front end hangs up, or, if it may have several, for
/// ever. Signals, the sandbox and the log are the caller's business; [`crate::args::Program::run`] minds them too.
///
/// # Errors
/// [`DaemonError`]; a front end that misbehaves ends the device only if it was to be the only one.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let (events, inbox) = mpsc::channel();
    let _device = Prepared::new(config, &mut Activation::default(), true)?.start(events)?;
    loop {
        match inbox.recv() {
            Ok(DaemonEvent::Ended(_, result)) => return result,
            Ok(_) => {}
            Err(_) => return Err(DaemonError::Panicked),
        }
    }
}
