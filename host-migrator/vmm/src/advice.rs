// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel is told about the mapping of guest memory.
#![allow(unsafe_code)]

use std::io;

use host_migrator::GuestRam;
use rustix::mm::Advice;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Asks for huge pages.
///
/// # Errors
/// The kernel's, if it has none for memory files.
pub fn huge_pages(ram: &GuestRam) -> io::Result<()> {
    advise(ram, Advice::LinuxHugepage)
}

/// Takes every page from the host now.
///
/// # Errors
/// The kernel's, if it has not enough memory or is older than Linux 5.14.
pub fn populate(ram: &GuestRam) -> io::Result<()> {
    advise(ram, Advice::LinuxPopulateWrite)
}

fn advise(ram: &GuestRam, advice: Advice) -> io::Result<()> {
    for region in ram.memory().iter() {
        // SAFETY: the region is mapped while `ram` lives. Neither advice that is given here changes what the
        // memory contains.
        unsafe { rustix::mm::madvise(region.as_ptr().cast(), region.size(), advice) }?;
        debug_assert_eq!(region.size() as u64, region.len());
    }
    Ok(())
}
