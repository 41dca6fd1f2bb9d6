// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that is copied into memory of this process: no socket, and no thread but the guest's.

use host_migrator::{
    GuestRam, Migration, MigrationError, MigrationParams, MigrationReport, Source, StoreSink,
};
use spec::trace::check::Verdict;

use super::machine::{SoftMachine, state};
use super::memory::{Memory, WrongPage, like};
use super::{keeps_the_rule, verdict};

/// A copy of a guest.
pub struct Copy {
    pub ram: GuestRam,
    pub report: MigrationReport,
}

impl Copy {
    /// Pages of it that are not those of `memory`, whose guest stands still.
    pub fn wrong_pages(&self, memory: &Memory) -> Vec<WrongPage> {
        memory.wrong_pages(&self.ram, self.report.skipped.as_deref())
    }
}

/// Copies `source` into new memory. Its machine `machine` stands still afterwards, until it is taken back. What the migration
/// records must be as the rule wants it.
pub fn copy(
    source: &mut Source<'_>,
    machine: &SoftMachine,
    params: &MigrationParams,
) -> Result<Copy, MigrationError> {
    let ram = like(source.ram.as_ref());
    machine.stay_stopped();
    let mut sink = StoreSink::new(&ram)?;
    let report = Migration::copy(source, params, &mut sink)?;
    assert_eq!(sink.machine_state(), state().sections());
    let totals = sink.totals().expect("the guest is whole");
    assert_eq!(totals.pages_sent, report.totals.pages_sent);
    assert!(machine.is_stopped() && !machine.is_handed_over());
    let verdict = verdict(source);
    assert!(
        matches!(verdict, Verdict::Holds(_)) || !keeps_the_rule(params),
        "{verdict}"
    );
    Ok(Copy { ram, report })
}
