// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine could not do.

/// The machine could not do what the migration asked of it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {reason}")]
pub struct MachineError {
    /// What was asked, such as "cannot pause the guest".
    pub action: &'static str,
    /// Why it failed, with its causes.
    pub reason: String,
}
