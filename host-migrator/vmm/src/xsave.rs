// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The extended processor state (XSAVE area) of a vCPU. Only the kernel knows its size.
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

/// Words of the fixed part, which every kernel has.
const FIXED_WORDS: usize = size_of::<kvm_xsave>() / 4;

/// Bytes of the XSAVE area of `vm`'s vCPUs.
pub fn bytes(vm: &VmFd) -> usize {
    (FIXED_WORDS + extended_words(vm)) * 4
}

/// Reads the XSAVE area, as 32-bit words.
///
/// # Errors
/// The kernel's.
pub fn read(vm: &VmFd, vcpu: &VcpuFd) -> io::Result<Vec<u32>> {
    let mut area = zeroed(vm)?;
    let extended = !area.as_slice().is_empty();
    if extended {
        // SAFETY: the area has the size that this kernel gives for the machine, and no features are enabled after
        // the machine is made.
        unsafe { vcpu.get_xsave2(&mut area) }?;
        let fixed = area.as_fam_struct_ref().xsave.region;
        return Ok(fixed.iter().chain(area.as_slice()).copied().collect());
    }
    Ok(vcpu.get_xsave()?.region.to_vec())
}

/// Writes an XSAVE area.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if the area has a different size here, or the kernel's.
pub fn write(vm: &VmFd, vcpu: &VcpuFd, words: &[u32]) -> io::Result<()> {
    let mut area = zeroed(vm)?;
    let expected = FIXED_WORDS + area.as_slice().len();
    if words.len() != expected {
        let message = format!(
            "an XSAVE area of {} bytes, but this processor's has {}",
            words.len() * 4,
            expected * 4
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let (fixed, extended) = words.split_at(FIXED_WORDS);
    area.as_mut_slice().copy_from_slice(extended);
    let mut header = kvm_xsave::default();
    header.region.copy_from_slice(fixed);
    set_fixed(&mut area, &header);
    // SAFETY: the area has the size that this kernel gives for the machine.
    unsafe { vcpu.set_xsave2(&area) }?;
    Ok(())
}

fn set_fixed(area: &mut Xsave, fixed: &kvm_xsave) {
    // SAFETY: only the fixed part is written, not the length on which the rest depends.
    unsafe { area.as_mut_fam_struct() }.xsave.region = fixed.region;
}

/// An area of the size that KVM uses for this machine.
fn zeroed(vm: &VmFd) -> io::Result<Xsave> {
    Xsave::new(extended_words(vm)).map_err(|error| io::Error::other(format!("{error:?}")))
}

/// Words of the area after the fixed part.
fn extended_words(vm: &VmFd) -> usize {
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    (bytes / 4).saturating_sub(FIXED_WORDS)
}
