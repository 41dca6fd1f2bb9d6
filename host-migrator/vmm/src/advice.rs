// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Advice to the kernel about the mapping of guest memory.
#![allow(unsafe_code)]

use std::io;

use host_migrator::GuestRam;
use rustix::mm::Advice;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Asks for huge pages.
///
/// # Errors
/// The kernel's, if memory files cannot have huge pages.
pub fn huge_pages(ram: &GuestRam) -> io::Result<()> {
    advise(ram, Advice::LinuxHugepage)
}

/// Allocates every page now.
///
/// # Errors
/// The kernel's, if it has not enough memory or is older than Linux 5.14.
pub fn populate(ram: &GuestRam) -> io::Result<()> {
    advise(ram, Advice::LinuxPopulateWrite)
}

/// Makes one huge page of the 2 MiB of `block`, which lies in one region and has all its memory allocated.
///
/// # Errors
/// The kernel's: there is no free huge page, the mapping is not aligned, or Linux is older than 6.1.
pub fn collapse(ram: &GuestRam, block: PageRange) -> io::Result<()> {
    ram.layout().check(block).map_err(io::Error::other)?;
    let start = ram
        .memory()
        .get_host_address(GuestAddress(block.first() * PAGE_SIZE));
    let start = start.map_err(io::Error::other)?;
    // SAFETY: the block is in a region that is mapped while `ram` lives. Its content does not change.
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
        // SAFETY: the region is mapped while `ram` lives. No advice given here changes the memory's content.
        unsafe { rustix::mm::madvise(region.as_ptr().cast(), region.size(), advice) }?;
        debug_assert_eq!(region.size() as u64, region.len());
    }
    Ok(())
}
