// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A static probe (USDT, provider `lacuna`) for each kind of event. A probe that nobody listens to is one instruction that does nothing.
//!
//! `bpftrace -e 'usdt:./lacuna:lacuna:migration { printf("%s\n", str(arg0)); }' -p PID` prints the phases of a migration.
#![allow(unsafe_code, reason = "a probe is an instruction of its own")]

use std::ffi::CString;

use probe::probe;

use super::events::MigrationEvent;
use super::stats::MigrationState;

/// Passes the probe of `event`.
pub(crate) fn pass(event: &MigrationEvent) {
    match event {
        MigrationEvent::Migration { status, .. } => {
            // States are few: their names are made whether or not somebody listens.
            let name = name(*status);
            probe!(lacuna, migration, name.as_ptr());
        }
        MigrationEvent::MigrationPass { pass, remaining } => {
            probe!(lacuna, migration_pass, *pass, *remaining);
        }
        MigrationEvent::DirtySync {
            count,
            background,
            dirty_pages,
            remaining,
        } => {
            let background = u32::from(*background);
            probe!(
                lacuna,
                dirty_sync,
                *count,
                background,
                *dirty_pages,
                *remaining
            );
        }
        MigrationEvent::CpuThrottle { percentage } => {
            probe!(lacuna, cpu_throttle, u32::from(*percentage));
        }
        MigrationEvent::VcpuDirtyLimit { bytes_per_second } => {
            probe!(lacuna, vcpu_dirty_limit, *bytes_per_second);
        }
        MigrationEvent::Decision { .. } => probe!(lacuna, decision),
    }
}

/// The state as `query-migrate` calls it, as C reads it: `PreSwitchover` is `pre-switchover`.
fn name(state: MigrationState) -> CString {
    let mut name = String::new();
    for letter in format!("{state:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.push(letter.to_ascii_lowercase());
    }
    // No name of a state has a zero in it.
    CString::new(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_the_name_that_the_status_has() {
        for state in [MigrationState::None, MigrationState::HandedOverInPart] {
            let json = serde_json::to_value(state).unwrap();
            assert_eq!(json.as_str().unwrap(), name(state).to_str().unwrap());
        }
    }
}
