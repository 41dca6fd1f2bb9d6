// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers of CPUID whose bits are features, and the features' names as Linux and QEMU spell them.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

/// A register that CPUID answers in.
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

    /// Its place in `entry`.
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
    /// That register.
    pub const fn new(leaf: u32, subleaf: u32, register: Register) -> Self {
        Self {
            leaf,
            subleaf,
            register,
        }
    }

    /// Whether `entry` has it.
    pub fn is_in(self, entry: &kvm_cpuid_entry2) -> bool {
        (entry.function, entry.index) == (self.leaf, self.subleaf)
    }

    /// Its value in `entries`; 0 where the leaf is missing, as on a processor that does not know it.
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

/// A leaf and its subleaf, as in "CPUID 7.0".
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

/// A bit and its name.
pub type Named = (u32, &'static str);

/// All words of feature bits. A bit without a name counts too. Left out are bits that follow what the guest does
/// (OSXSAVE, OSPKE), numbers, and descriptions of caches and topology.
pub const WORDS: &[(Word, u32, &[Named])] = &[
    (
        Word::new(1, 0, Register::Ecx),
        !(1 << 27),
        &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (2, "dtes64"),
            (3, "monitor"),
            (4, "ds_cpl"),
            (5, "vmx"),
            (6, "smx"),
            (7, "est"),
            (8, "tm2"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (14, "xtpr"),
            (15, "pdcm"),
            (17, "pcid"),
            (18, "dca"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc_deadline_timer"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    ),
    (
        Word::new(1, 0, Register::Edx),
        u32::MAX,
        &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (18, "pn"),
            (19, "clflush"),
            (21, "dts"),
            (22, "acpi"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (27, "ss"),
            (28, "ht"),
            (29, "tm"),
            (31, "pbe"),
        ],
    ),
    (Word::new(6, 0, Register::Eax), 1 << 2, &[(2, "arat")]),
    (
        Word::new(7, 0, Register::Ebx),
        u32::MAX,
        &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (2, "sgx"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (6, "fdp_excptn_only"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (12, "cqm"),
            (13, "zero_fcs_fds"),
            (14, "mpx"),
            (15, "rdt_a"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (25, "intel_pt"),
            (26, "avx512pf"),
            (27, "avx512er"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        Word::new(7, 0, Register::Ecx),
        !(1 << 4 | 0x1f << 17),
        &[
            (0, "prefetchwt1"),
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (5, "waitpkg"),
            (6, "avx512_vbmi2"),
            (7, "shstk"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (13, "tme"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (24, "bus_lock_detect"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
            (29, "enqcmd"),
            (30, "sgx_lc"),
            (31, "pks"),
        ],
    ),
    (
        Word::new(7, 0, Register::Edx),
        u32::MAX,
        &[
            (2, "avx512_4vnniw"),
            (3, "avx512_4fmaps"),
            (4, "fsrm"),
            (5, "uintr"),
            (8, "avx512_vp2intersect"),
            (9, "srbds_ctrl"),
            (10, "md_clear"),
            (11, "rtm_always_abort"),
            (13, "tsx_force_abort"),
            (14, "serialize"),
            (15, "hybrid_cpu"),
            (16, "tsxldtrk"),
            (18, "pconfig"),
            (19, "arch_lbr"),
            (20, "ibt"),
            (22, "amx_bf16"),
            (23, "avx512_fp16"),
            (24, "amx_tile"),
            (25, "amx_int8"),
            (26, "spec_ctrl"),
            (27, "stibp"),
            (28, "flush_l1d"),
            (29, "arch_capabilities"),
            (30, "core_capabilities"),
            (31, "ssbd"),
        ],
    ),
    (
        Word::new(7, 1, Register::Eax),
        u32::MAX,
        &[
            (0, "sha512"),
            (1, "sm3"),
            (2, "sm4"),
            (4, "avx_vnni"),
            (5, "avx512_bf16"),
            (6, "lass"),
            (7, "cmpccxadd"),
            (10, "fzrm"),
            (11, "fsrs"),
            (12, "fsrc"),
            (17, "fred"),
            (18, "lkgs"),
            (19, "wrmsrns"),
            (21, "amx_fp16"),
            (23, "avx_ifma"),
            (26, "lam"),
        ],
    ),
    (
        Word::new(7, 1, Register::Edx),
        u32::MAX,
        &[
            (4, "avx_vnni_int8"),
            (5, "avx_ne_convert"),
            (8, "amx_complex"),
            (10, "avx_vnni_int16"),
            (14, "prefetchiti"),
            (18, "cet_sss"),
            (19, "avx10"),
        ],
    ),
    (
        Word::new(7, 2, Register::Edx),
        u32::MAX,
        &[
            (0, "intel_psfd"),
            (1, "ipred_ctrl"),
            (2, "rrsba_ctrl"),
            (3, "ddpd_u"),
            (4, "bhi_ctrl"),
            (5, "mcdt_no"),
        ],
    ),
    (
        Word::new(0xd, 0, Register::Eax),
        u32::MAX,
        &[
            (0, "x87 state"),
            (1, "sse state"),
            (2, "avx state"),
            (3, "mpx bounds state"),
            (4, "mpx config state"),
            (5, "avx512 mask state"),
            (6, "avx512 zmm_hi256 state"),
            (7, "avx512 hi16_zmm state"),
            (8, "pt state"),
            (9, "pkru state"),
            (11, "cet user state"),
            (12, "cet supervisor state"),
            (17, "amx tile config state"),
            (18, "amx tile data state"),
        ],
    ),
    (
        Word::new(0xd, 0, Register::Edx),
        u32::MAX,
        &[(30, "lwp state")],
    ),
    (
        Word::new(0xd, 1, Register::Eax),
        u32::MAX,
        &[
            (0, "xsaveopt"),
            (1, "xsavec"),
            (2, "xgetbv1"),
            (3, "xsaves"),
            (4, "xfd"),
        ],
    ),
    (
        Word::new(0xd, 1, Register::Ecx),
        u32::MAX,
        &[
            (8, "pt state"),
            (11, "cet user state"),
            (12, "cet supervisor state"),
        ],
    ),
    (Word::new(0xd, 1, Register::Edx), u32::MAX, &[]),
    (Word::new(0x14, 0, Register::Ebx), u32::MAX, &[]),
    (Word::new(0x14, 0, Register::Ecx), u32::MAX, &[]),
    (
        Word::new(0x8000_0001, 0, Register::Ecx),
        u32::MAX,
        &[
            (0, "lahf_lm"),
            (1, "cmp_legacy"),
            (2, "svm"),
            (3, "extapic"),
            (4, "cr8_legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
            (9, "osvw"),
            (10, "ibs"),
            (11, "xop"),
            (12, "skinit"),
            (13, "wdt"),
            (15, "lwp"),
            (16, "fma4"),
            (17, "tce"),
            (19, "nodeid_msr"),
            (21, "tbm"),
            (22, "topoext"),
            (23, "perfctr_core"),
            (24, "perfctr_nb"),
            (26, "bpext"),
            (28, "perfctr_llc"),
            (29, "mwaitx"),
        ],
    ),
    (
        Word::new(0x8000_0001, 0, Register::Edx),
        u32::MAX,
        &[
            (11, "syscall"),
            (19, "mp"),
            (20, "nx"),
            (22, "mmxext"),
            (25, "fxsr_opt"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
            (30, "3dnowext"),
            (31, "3dnow"),
        ],
    ),
    (
        Word::new(0x8000_0007, 0, Register::Ebx),
        u32::MAX,
        &[(0, "overflow_recov"), (1, "succor"), (3, "smca")],
    ),
    (
        Word::new(0x8000_0007, 0, Register::Edx),
        u32::MAX,
        &[(8, "invariant_tsc")],
    ),
    (
        Word::new(0x8000_0008, 0, Register::Ebx),
        u32::MAX,
        &[
            (0, "clzero"),
            (1, "irperf"),
            (2, "xsaveerptr"),
            (4, "rdpru"),
            (9, "wbnoinvd"),
            (12, "amd_ibpb"),
            (14, "amd_ibrs"),
            (15, "amd_stibp"),
            (17, "amd_stibp_always_on"),
            (19, "ibrs_same_mode"),
            (23, "amd_ppin"),
            (24, "amd_ssbd"),
            (25, "virt_ssbd"),
            (26, "amd_ssb_no"),
            (28, "amd_psfd"),
            (29, "btc_no"),
            (30, "ibpb_ret"),
        ],
    ),
    (
        Word::new(0x8000_0021, 0, Register::Eax),
        u32::MAX,
        &[
            (0, "no_nested_data_bp"),
            (2, "lfence_rdtsc"),
            (3, "smm_ctl"),
            (6, "null_sel_clears_base"),
            (8, "autoibrs"),
            (9, "no_smm_ctl_msr"),
            (17, "prefetchi"),
            (27, "sbpb"),
            (28, "ibpb_brtype"),
            (29, "srso_no"),
            (30, "srso_user_kernel_no"),
        ],
    ),
    (
        Word::new(0x8000_0021, 0, Register::Ecx),
        u32::MAX,
        &[(1, "tsa_sq_no"), (2, "tsa_l1_no")],
    ),
    (
        Word::new(0x8000_0022, 0, Register::Eax),
        u32::MAX,
        &[(0, "perfmon_v2"), (1, "amd_lbr_v2")],
    ),
    (
        Word::new(0x4000_0001, 0, Register::Eax),
        u32::MAX,
        &[
            (0, "kvmclock_old"),
            (1, "kvm_nopiodelay"),
            (2, "kvm_mmu"),
            (3, "kvmclock"),
            (4, "kvm_asyncpf"),
            (5, "kvm_steal_time"),
            (6, "kvm_pv_eoi"),
            (7, "kvm_pv_unhalt"),
            (9, "kvm_pv_tlb_flush"),
            (10, "kvm_asyncpf_vmexit"),
            (11, "kvm_pv_ipi"),
            (12, "kvm_poll_control"),
            (13, "kvm_pv_sched_yield"),
            (14, "kvm_asyncpf_int"),
            (15, "kvm_msi_ext_dest_id"),
            (16, "kvm_hc_map_gpa_range"),
            (17, "kvm_migration_control"),
            (24, "kvmclock_stable"),
        ],
    ),
];
