// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of CPUID: their values in KVM's table, and their names in messages.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

/// A register that CPUID writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Register {
    /// Its value in `entry`.
    pub fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    /// A reference to its value in `entry`.
    pub fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// A register of one leaf and subleaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// The leaf: EAX before the instruction.
    pub leaf: u32,
    /// The subleaf: ECX before the instruction; 0 for leaves without.
    pub subleaf: u32,
    /// The register.
    pub register: Register,
}

impl Word {
    /// `register` of `leaf` and `subleaf`.
    pub const fn new(leaf: u32, subleaf: u32, register: Register) -> Self {
        Self {
            leaf,
            subleaf,
            register,
        }
    }

    /// Whether `entry` contains it.
    pub fn is_in(self, entry: &kvm_cpuid_entry2) -> bool {
        (entry.function, entry.index) == (self.leaf, self.subleaf)
    }

    /// Its value in `entries`; 0 if the leaf is missing, as on a processor that does not have it.
    pub fn value(self, entries: &[kvm_cpuid_entry2]) -> u32 {
        let entry = entries.iter().find(|entry| self.is_in(entry));
        entry.map_or(0, |entry| self.register.of(entry))
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = Leaf(self.leaf, self.subleaf);
        let register = match self.register {
            Register::Eax => "EAX",
            Register::Ebx => "EBX",
            Register::Ecx => "ECX",
            Register::Edx => "EDX",
        };
        write!(f, "{leaf}:{register}")
    }
}

/// A leaf and its subleaf, such as "CPUID 7.0".
#[derive(Clone, Copy, Debug)]
pub struct Leaf(pub u32, pub u32);

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Leaves that have subleaves.
        const WITH_SUBLEAVES: [u32; 8] = [4, 7, 0xb, 0xd, 0x14, 0x1d, 0x1e, 0x24];
        let Self(leaf, subleaf) = self;
        if *leaf < 10 {
            write!(f, "CPUID {leaf}")?;
        } else {
            write!(f, "CPUID {leaf:#x}")?;
        }
        if WITH_SUBLEAVES.contains(leaf) {
            write!(f, ".{subleaf}")?;
        }
        Ok(())
    }
}
