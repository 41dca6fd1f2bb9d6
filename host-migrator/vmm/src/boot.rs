// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Starts a guest on a new machine: its memory, and the vCPUs' first registers.

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
};
use kvm_ioctls::VcpuFd;

use crate::bare::{self, BareError, BareWorkload};
use crate::cpuid;
use crate::images::BARE_GUEST;
use crate::linux::{self, LinuxBoot, LinuxError};
use crate::memory::OwnMemory;
use crate::mmio::MmioSlot;
use crate::state::GuestKind;
use crate::vcpu::Vcpus;

/// A guest to start.
#[derive(Clone, Debug)]
pub enum Guest {
    /// The bare-metal guest that this crate embeds.
    Bare(BareWorkload),
    /// Another program for the machine of [`spec::bare`], as a static ELF executable.
    BareImage(Vec<u8>, BareWorkload),
    /// A stock Linux kernel.
    Linux(LinuxGuest),
}

/// A Linux guest to start.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    /// The kernel: a bzImage, or an ELF `vmlinux`.
    pub kernel: Vec<u8>,
    /// The initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A guest that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The bare guest.
    #[error(transparent)]
    Bare(#[from] BareError),
    /// Linux.
    #[error(transparent)]
    Linux(#[from] LinuxError),
    /// KVM refused a vCPU's first state.
    #[error("a vCPU's first state is refused: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
}

/// Puts `guest` into `memory`, and each of the `vcpus` into its initial state, with a CPUID from `supported`. A Linux
/// guest is told where its virtio-mmio `devices` are.
///
/// # Errors
/// [`BootError`]; the machine then cannot be used.
pub fn boot(
    supported: &CpuId,
    memory: &OwnMemory,
    vcpus: &Vcpus,
    guest: &Guest,
    devices: &[MmioSlot],
) -> Result<GuestKind, BootError> {
    set_cpuid(supported, vcpus)?;
    match guest {
        Guest::Bare(workload) => boot_bare(memory, vcpus, BARE_GUEST, workload),
        Guest::BareImage(image, workload) => boot_bare(memory, vcpus, image, workload),
        Guest::Linux(linux) => boot_linux(memory, vcpus, linux, devices),
    }
}

fn set_cpuid(supported: &CpuId, vcpus: &Vcpus) -> Result<(), BootError> {
    let count = vcpus.count() as u32;
    for (number, vcpu) in (0..).zip(vcpus.lock_all()) {
        vcpu.set_cpuid2(&cpuid::for_vcpu(supported, number, count)?)?;
    }
    Ok(())
}

fn boot_bare(
    memory: &OwnMemory,
    vcpus: &Vcpus,
    image: &[u8],
    workload: &BareWorkload,
) -> Result<GuestKind, BootError> {
    let tsc_khz = match vcpus.lock_all().next() {
        Some(vcpu) => vcpu.get_tsc_khz()?,
        None => 0,
    };
    let count = vcpus.count() as u64;
    let entry = bare::load(memory, image, workload, count, tsc_khz)?;
    for (number, vcpu) in (0..).zip(vcpus.lock_all()) {
        // The bare guest does not start the other vCPUs by itself, so all start at once.
        vcpu.set_mp_state(kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        })?;
        vcpu.set_sregs(&entry.sregs(vcpu.get_sregs()?))?;
        vcpu.set_regs(&entry.regs(number))?;
    }
    Ok(GuestKind::Bare)
}

fn boot_linux(
    memory: &OwnMemory,
    vcpus: &Vcpus,
    linux: &LinuxGuest,
    devices: &[MmioSlot],
) -> Result<GuestKind, BootError> {
    let boot = LinuxBoot {
        kernel: &linux.kernel,
        initrd: linux.initrd.as_deref(),
        command_line: &linux.command_line,
        vcpus: vcpus.count() as u8,
        virtio_mmio: devices,
    };
    let entry = linux::load(memory, &boot)?;
    for (number, vcpu) in vcpus.lock_all().enumerate() {
        set_msrs(&vcpu)?;
        connect_interrupt_lines(&vcpu)?;
        // The other vCPUs wait until the first one starts them.
        if number == 0 {
            vcpu.set_sregs(&entry.sregs(vcpu.get_sregs()?))?;
            vcpu.set_regs(&entry.regs())?;
        }
    }
    Ok(GuestKind::Linux)
}

/// Registers that firmware would set: fast string operations, and write-back caching by default.
fn set_msrs(vcpu: &VcpuFd) -> Result<(), BootError> {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1 << 0;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(IA32_MISC_ENABLE, FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, ENABLED_WRITE_BACK),
    ])
    .map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    // A processor without one of these registers needs no value in it.
    vcpu.set_msrs(&msrs)?;
    Ok(())
}

/// The local APIC's lines as firmware leaves them: line 0 takes interrupts of the old controller, line 1 is the NMI.
fn connect_interrupt_lines(vcpu: &VcpuFd) -> Result<(), BootError> {
    const LINE_0: usize = 0x350;
    const LINE_1: usize = 0x360;
    const MODE_NMI: u32 = 0b100 << 8;
    const MODE_EXTERNAL: u32 = 0b111 << 8;
    let mut lapic: kvm_lapic_state = vcpu.get_lapic()?;
    for (register, mode) in [(LINE_0, MODE_EXTERNAL), (LINE_1, MODE_NMI)] {
        for (byte, value) in lapic.regs[register..].iter_mut().zip(mode.to_le_bytes()) {
            *byte = value.cast_signed();
        }
    }
    vcpu.set_lapic(&lapic)?;
    Ok(())
}
