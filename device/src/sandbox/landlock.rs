// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! No file system, no network, no signals to other processes.
//!
//! If the kernel's Landlock lacks some restrictions, they are left out. The log says which ones are in force.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest version that the crate knows. Each kernel uses the part that it supports.
const ABI_KNOWN: ABI = ABI::V9;

/// Restricts the calling thread and the threads that it starts from now on. Returns how much of that the kernel
/// supports. Files may be removed from `folders` and everything below: there is no such right for a single file.
///
/// # Errors
/// [`RulesetError`] if the kernel has Landlock and refuses the rules.
pub fn restrict(folders: &[PathBuf]) -> Result<RulesetStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(landlock::CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI_KNOWN))?
        .handle_access(AccessNet::from_all(ABI_KNOWN))?
        .scope(Scope::from_all(ABI_KNOWN))?
        .create()?;
    for folder in folders {
        match PathFd::new(folder) {
            Ok(folder) => {
                ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
            }
            Err(error) => log::warn!("{}: {error}", folder.display()),
        }
    }
    Ok(ruleset.restrict_self()?.ruleset)
}

/// Logs how far the kernel restricts the process.
pub fn log(status: &RulesetStatus) {
    match status {
        RulesetStatus::FullyEnforced => log::info!("Landlock restricts all that it can"),
        RulesetStatus::PartiallyEnforced => {
            log::info!("Landlock restricts files; newer kernels can restrict more");
        }
        RulesetStatus::NotEnforced => {
            log::warn!("this kernel has no Landlock: only the system call filter restricts files");
        }
    }
}
