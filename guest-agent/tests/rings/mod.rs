// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver's view of memory that rust-vmm's types hold for the device.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use lacuna_balloon_driver::DmaRegion;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The `bytes` at `gpa` for the driver. `memory` must outlive the driver; the device that owns it does.
pub fn region(memory: &GuestMemoryMmap, gpa: u64, bytes: usize) -> DmaRegion {
    let slice = memory
        .get_slice(GuestAddress(gpa), bytes)
        .expect("one region");
    let base = NonNull::new(slice.ptr_guard_mut().as_ptr()).expect("mapped");
    // SAFETY: the memory is mapped and zero, the device keeps it mapped, both addresses are those of a
    // page, and rust-vmm's types access it by volatile and atomic operations only.
    unsafe { DmaRegion::new(base, gpa, bytes) }
}
