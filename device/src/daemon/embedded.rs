// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device in a process that handles signals, sandbox and log itself.

use std::sync::mpsc;

use super::device::Prepared;
use super::error::{DaemonError, DaemonEvent};
use super::service_manager::Activation;
use crate::args::Config;

/// Runs one device in the calling process until its only front end hangs up, or, if it serves several, for ever. The
/// caller handles signals, the sandbox and the log; [`crate::args::Program::run`] also does that.
///
/// # Errors
/// [`DaemonError`]. A misbehaving front end ends the device only if the device serves no other.
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
