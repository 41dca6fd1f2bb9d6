// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's CPUID promises and a host does not have.
//!
//! KVM accepts most feature bits that its host lacks (KVM_SET_CPUID2 succeeds). The guest would run on and crash later
//! at an instruction that the new processor does not have.

use kvm_bindings::kvm_cpuid_entry2;

use super::features::WORDS;
use super::register::{Leaf, Register, Word};

/// Numbers that must not be greater in the guest than on the host: register, lowest bit, width, and meaning.
const NUMBERS: [(Word, u32, u32, &str); 7] = [
    (
        Word::new(0x8000_0008, 0, Register::Eax),
        0,
        8,
        "physical address bits",
    ),
    (
        Word::new(0x8000_0008, 0, Register::Eax),
        8,
        8,
        "linear address bits",
    ),
    (
        Word::new(0xa, 0, Register::Eax),
        0,
        8,
        "as version of performance monitoring",
    ),
    (
        Word::new(0xa, 0, Register::Eax),
        8,
        8,
        "performance counters",
    ),
    (
        Word::new(0xa, 0, Register::Edx),
        0,
        5,
        "fixed performance counters",
    ),
    (
        Word::new(0x24, 0, Register::Ebx),
        0,
        8,
        "as version of AVX10",
    ),
    (
        Word::new(0x8000_0022, 0, Register::Ebx),
        0,
        4,
        "AMD core performance counters",
    ),
];
/// Leaves that must be the same if the guest has them: the shapes of AMX's tiles.
const EXACT: [(u32, u32); 2] = [(0x1d, 1), (0x1e, 0)];
/// The leaf of the XSAVE area, and how many components it can have.
const XSAVE: u32 = 0xd;
const COMPONENTS: u32 = 63;

/// Names everything that a guest with the CPUID `guest` would miss on a host that supports `host`. The result is empty
/// if the guest can run there.
pub fn lacking(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut lacking = Vec::new();
    let (theirs, ours) = (vendor(guest), vendor(host));
    if theirs != ours {
        lacking.push(format!("a processor made by {theirs}, not {ours}"));
    }
    for (word, mask, names) in WORDS {
        let missing = word.value(guest) & !word.value(host) & mask;
        let bits = (0..u32::BITS).filter(|bit| missing & 1 << bit != 0);
        lacking.extend(bits.map(|bit| {
            let named = names.iter().find(|(number, _)| *number == bit);
            match named {
                Some((_, name)) => format!("{name} ({word} bit {bit})"),
                None => format!("{word} bit {bit}"),
            }
        }));
    }
    for (word, low, width, what) in NUMBERS {
        let number = |entries| word.value(entries) >> low & ((1 << width) - 1);
        let (theirs, ours) = (number(guest), number(host));
        if theirs > ours {
            lacking.push(format!("{theirs} {what} ({word}), not {ours}"));
        }
    }
    for (leaf, subleaf) in EXACT {
        let theirs = registers(guest, leaf, subleaf);
        if theirs != [0; 4] && theirs != registers(host, leaf, subleaf) {
            lacking.push(format!("{} as the source has it", Leaf(leaf, subleaf)));
        }
    }
    lacking.extend(misplaced_components(guest, host));
    lacking
}

/// Components of the XSAVE area that both have at different places: saved state would be misread.
fn misplaced_components<'a>(
    guest: &'a [kvm_cpuid_entry2],
    host: &'a [kvm_cpuid_entry2],
) -> impl Iterator<Item = String> + use<'a> {
    (2..COMPONENTS).filter_map(|component| {
        let place = |entries| {
            let [size, offset, ..] = registers(entries, XSAVE, component);
            (size, offset)
        };
        let (theirs, ours) = (place(guest), place(host));
        let both = theirs.0 != 0 && ours.0 != 0;
        (both && theirs != ours).then(|| {
            format!(
                "XSAVE component {component} of {} bytes at {}, not {} at {} ({})",
                theirs.0,
                theirs.1,
                ours.0,
                ours.1,
                Leaf(XSAVE, component)
            )
        })
    })
}

fn registers(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> [u32; 4] {
    [Register::Eax, Register::Ebx, Register::Ecx, Register::Edx]
        .map(|register| Word::new(leaf, subleaf, register).value(entries))
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let [_, b, c, d] = registers(entries, 0, 0);
    let bytes = [b, d, c].map(u32::to_le_bytes).concat();
    // It comes from the stream and may be shown on a terminal.
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn amd() -> kvm_cpuid_entry2 {
        entry(0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65])
    }

    #[test]
    fn a_feature_is_named_with_its_leaf_register_and_bit() {
        let guest = [
            amd(),
            entry(7, 0, [0, 1 << 16 | 1 << 22, 1 << 3 | 1 << 4, 0]),
        ];
        let host = [amd(), entry(7, 0, [0, 0, 0, 0])];
        assert_eq!(
            lacking(&guest, &host),
            [
                "avx512f (CPUID 7.0:EBX bit 16)",
                "CPUID 7.0:EBX bit 22",
                "pku (CPUID 7.0:ECX bit 3)",
            ]
        );
        // OSPKE depends on CR4, and more features on the host do no harm.
        assert_eq!(lacking(&host, &guest), [""; 0]);
    }

    #[test]
    fn a_leaf_that_the_host_does_not_know_has_no_features() {
        let guest = [amd(), entry(0x8000_0021, 0, [1 << 8, 0, 0, 0])];
        assert_eq!(
            lacking(&guest, &[amd()]),
            ["autoibrs (CPUID 0x80000021:EAX bit 8)"]
        );
    }

    #[test]
    fn vendors_sizes_and_places_are_each_compared_in_their_own_way() {
        let intel = entry(0, 0, [0x10, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
        let wide = entry(0x8000_0008, 0, [0x3934, 0, 0, 0]);
        let narrow = entry(0x8000_0008, 0, [0x302e, 0, 0, 0]);
        let early = entry(0xd, 9, [8, 2432, 0, 0]);
        let late = entry(0xd, 9, [8, 2688, 0, 0]);
        assert_eq!(
            lacking(&[intel, wide, late], &[amd(), narrow, early]),
            [
                "a processor made by GenuineIntel, not AuthenticAMD",
                "52 physical address bits (CPUID 0x80000008:EAX), not 46",
                "57 linear address bits (CPUID 0x80000008:EAX), not 48",
                "XSAVE component 9 of 8 bytes at 2688, not 8 at 2432 (CPUID 0xd.9)",
            ]
        );
        assert_eq!(lacking(&[amd(), narrow], &[amd(), wide]), [""; 0]);
    }
}
