// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entering the sandbox.

use std::sync::Arc;

use super::mode::SandboxMode;
use super::seccomp::{Filters, SeccompError};
use super::{landlock, limits};

/// The sandbox cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel does not accept a filter.
    #[error("the sandbox cannot be entered (--sandbox off runs without it): {0}")]
    Seccomp(#[from] SeccompError),
    /// The kernel has Landlock and refuses the rules.
    #[error("the sandbox cannot be entered (--sandbox off runs without it): Landlock: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
}

/// Restricts the process for good. It serves `devices` devices and must still have only one thread. Returns the filters
/// that further restrict each later thread; `None` if nothing is restricted.
///
/// # Errors
/// [`SandboxError`]: the process must then end, because its user relies on the restrictions.
pub fn enter(mode: SandboxMode, devices: usize) -> Result<Option<Arc<Filters>>, SandboxError> {
    if mode == SandboxMode::Off {
        return Ok(None);
    }
    if mode == SandboxMode::Enforce {
        limits::set(devices);
        landlock::log(&landlock::restrict(&[])?);
    }
    let filters = Filters::new(mode)?;
    filters.confine_process()?;
    Ok(Some(Arc::new(filters)))
}
