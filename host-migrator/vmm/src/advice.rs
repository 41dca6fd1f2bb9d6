// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the kernel is told about the mapping of guest memory.
#![allow(unsafe_code)]

use std::io;

use host_migrator::GuestRam;
use rustix::mm::Advice;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

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

/// Has the kernel put the 2 MiB of `block` together to a huge page. They lie in one region, and all of them have memory.
///
/// # Errors
/// The kernel's: it has no huge page to spare, the mapping is not aligned, or it is older than Linux 6.1.
pub fn collapse(ram: &GuestRam, block: PageRange) -> io::Result<()> {
    ram.check(block).map_err(io::Error::other)?;
    let start = ram
        .memory()
        .get_host_address(GuestAddress(block.first() * PAGE_SIZE));
    let start = start.map_err(io::Error::other)?;
    // SAFETY: the block is in a region that is mapped while `ram` lives. What it contains stays as it is.
    let result =
        unsafe { libc::madvise(start.cast(), block.bytes() as usize, libc::MADV_COLLAPSE) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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
