// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes from the process, once it has its sockets, everything that it does not need to serve them.
//!
//! Guest memory, front ends' messages and control messages come from other processes. If one of them takes this process
//! over, it can do no more than what is left here. `SECURITY.md` has the threat model.
//!
//! | module | what it is |
//! |---|---|
//! | [`seccomp`] | the system calls that each kind of thread may make |
//! | [`landlock`] | no file system, no network, no signals to others |
//! | [`limits`] | file descriptors, memory, no core files |
//! | [`remover`] | the process that removes the sockets' files in the end |

pub mod landlock;
pub mod limits;
pub mod remover;
pub mod seccomp;

use std::sync::Arc;

use clap::ValueEnum;

use seccomp::{Filters, SeccompError};

/// The values of `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxMode {
    /// Everything is allowed that the user may do
    Off,
    /// The kernel logs forbidden system calls and allows them; files, networks and limits are as without a sandbox
    Log,
    /// The kernel ends the program; files and networks are out of reach where it has Landlock; limits are set
    Enforce,
}

/// A sandbox that cannot be entered.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel takes no filter.
    #[error("the sandbox cannot be entered (--sandbox off runs without it): {0}")]
    Seccomp(#[from] SeccompError),
    /// The kernel has Landlock and refuses the rules.
    #[error("the sandbox cannot be entered (--sandbox off runs without it): Landlock: {0}")]
    Landlock(#[from] ::landlock::RulesetError),
}

/// Restricts the process, which serves so many `devices` and has one thread yet, for good. The filters that come back narrow each later thread
/// further; there are none if nothing is restricted.
///
/// # Errors
/// [`SandboxError`]: the process is not to go on then, as its user relies on the restrictions.
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
