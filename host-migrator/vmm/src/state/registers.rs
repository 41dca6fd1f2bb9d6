// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers that KVM's index list (KVM_GET_MSR_INDEX_LIST) leaves out or that need special handling.
//!
//! Every register of the list is carried as a model-specific register, unless a row here says otherwise. A test looks for
//! registers of the local KVM that have a value and are neither in the list nor here (`tests/machine/registers.rs`).

use std::ops::RangeInclusive;

/// How a register is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Carried as a model-specific register, if the vCPU has it.
    Msr,
    /// Carried in the named other part of the vCPU's state.
    With(&'static str),
    /// Not carried, because CPUID hides the feature. A guest that has it nevertheless is refused.
    Hidden,
    /// Not carried, for the given reason.
    NotState(&'static str),
}

/// Registers that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Their numbers, if they are model-specific registers.
    pub msrs: &'static [RangeInclusive<u32>],
    /// What they are.
    pub what: &'static str,
    /// How they are handled.
    pub fate: Fate,
}

/// The table.
pub const TABLE: &[Row] = &[
    row(
        "memory type ranges (MTRRs)",
        &[
            0x200..=0x20f,
            0x250..=0x250,
            0x258..=0x259,
            0x268..=0x26f,
            0x2ff..=0x2ff,
        ],
        Fate::Msr,
    ),
    // The number of banks is read-only. A host with another number cannot set it, and so refuses the guest.
    row("number of machine check banks", &[0x179..=0x179], Fate::Msr),
    row(
        "machine check banks",
        &[0x280..=0x29f, 0x400..=0x47f, 0x4d0..=0x4d0],
        Fate::Msr,
    ),
    row("TSC_AUX", &[0xc000_0103..=0xc000_0103], Fate::Msr),
    row(
        "AMD's list of errata",
        &[0xc001_0140..=0xc001_0141],
        Fate::Msr,
    ),
    row(
        "registers of a guest that knows it is on PVM",
        &[0x4b56_4df0..=0x4b56_4df7],
        Fate::Msr,
    ),
    row(
        "what PVM says of its host",
        &[0x4b56_4d10..=0x4b56_4d13],
        Fate::NotState("it cannot be set, and is the same in all guests of a host"),
    ),
    row(
        "time stamp counter",
        &[0x10..=0x10],
        Fate::With("its own field, with the time at which it was read"),
    ),
    row(
        "TSC deadline",
        &[0x6e0..=0x6e0],
        Fate::With("its own field, read before the local APIC"),
    ),
    row(
        "APIC base, EFER, FS and GS base",
        &[
            0x1b..=0x1b,
            0xc000_0080..=0xc000_0080,
            0xc000_0100..=0xc000_0101,
        ],
        Fate::With("the special registers"),
    ),
    row(
        "local APIC in x2APIC mode",
        &[0x800..=0x8ff],
        Fate::With("the local APIC"),
    ),
    row("debug registers", &[], Fate::With("KVM_GET_DEBUGREGS")),
    row("XCR0", &[], Fate::With("KVM_GET_XCRS")),
    row(
        "exceptions, NMIs and interrupts on their way",
        &[],
        Fate::With("KVM_GET_VCPU_EVENTS"),
    ),
    row(
        "page directory pointers of 32-bit PAE paging",
        &[],
        Fate::NotState("KVM reads them again from guest memory"),
    ),
    row(
        "start of the wall clock",
        &WALL_CLOCK,
        Fate::NotState(
            "a write makes KVM write the guest's start time to guest memory, where it is already",
        ),
    ),
    row(
        "commands",
        &[0x49..=0x49, 0x10b..=0x10b],
        Fate::NotState("they trigger an action and hold no value"),
    ),
    row("VMX and its guests", &[0x480..=0x493], Fate::Hidden),
    row(
        "SVM and its guests",
        &[
            0xc000_0104..=0xc000_0104,
            0xc001_0114..=0xc001_0118,
            0xc001_0130..=0xc001_0131,
        ],
        Fate::Hidden,
    ),
    row("SGX launch key", &[0x8c..=0x8f], Fate::Hidden),
    row("shadow stack pointer", &[], Fate::Hidden),
];

/// Registers at whose write KVM stores the guest's start time at the given address, and which do nothing else.
const WALL_CLOCK: [RangeInclusive<u32>; 2] = [0x11..=0x11, 0x4b56_4d00..=0x4b56_4d00];

const fn row(what: &'static str, msrs: &'static [RangeInclusive<u32>], fate: Fate) -> Row {
    Row { msrs, what, fate }
}

/// The row of model-specific register `index`, if there is one.
pub fn row_of(index: u32) -> Option<&'static Row> {
    let has = |row: &&Row| row.msrs.iter().any(|range| range.contains(&index));
    TABLE.iter().find(has)
}

/// The model-specific registers to carry, if KVM's list is `listed`. A vCPU need not have all of them.
pub fn carried(listed: &[u32]) -> Vec<u32> {
    let of_table = |row: &'static Row| row.msrs.iter().cloned().flatten();
    let mut indices: Vec<u32> = TABLE
        .iter()
        .flat_map(of_table)
        .chain(listed.iter().copied())
        .filter(|index| row_of(*index).is_none_or(|row| row.fate == Fate::Msr))
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// The name of register `index` in messages.
pub fn name(index: u32) -> String {
    match row_of(index) {
        Some(row) => format!("MSR {index:#x} ({})", row.what),
        None => format!("MSR {index:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_register_has_two_fates() {
        for index in (0..0x1000)
            .chain(0x4b56_4d00..0x4b56_4e00)
            .chain(0xc000_0000..0xc000_1000)
        {
            let rows = TABLE
                .iter()
                .filter(|row| row.msrs.iter().any(|range| range.contains(&index)));
            assert!(rows.count() <= 1, "{index:#x}");
        }
    }

    #[test]
    fn registers_missing_in_the_list_are_carried_and_none_is_carried_twice() {
        let carried = carried(&[0x174, 0x10, 0x11, 0x6e0, 0xc001_0117]);
        for index in [0x174, 0x200, 0x2ff, 0xc000_0103] {
            assert!(carried.contains(&index), "{index:#x}");
        }
        for index in [0x10, 0x11, 0x6e0, 0x49, 0xc001_0117] {
            assert!(!carried.contains(&index), "{index:#x}");
        }
        assert!(carried.is_sorted());
    }
}
