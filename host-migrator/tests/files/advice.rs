// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Advice to the kernel about a mapping of guest memory, as a VMM gives it.
#![allow(unsafe_code)]

use std::ptr::with_exposed_provenance_mut;

use host_migrator::paging::Mapping;
use rustix::mm::{Advice, madvise};
use spec::{PAGE_SIZE, PageRange};

/// Gives `pages`, which `mapping` has, back to the host.
pub fn remove(mapping: &Mapping, pages: PageRange) {
    let skipped = (pages.first() - mapping.pages().first()) * PAGE_SIZE;
    let start = with_exposed_provenance_mut((mapping.address() + skipped) as usize);
    // SAFETY: it is guest memory, in which a test expects zeros then.
    unsafe { madvise(start, pages.bytes() as usize, Advice::LinuxRemove) }.unwrap();
}

/// Asks for huge pages.
pub fn ask_for_huge_pages(mapping: &Mapping) {
    let start = with_exposed_provenance_mut(mapping.address() as usize);
    // SAFETY: the content does not change.
    let asked = unsafe {
        madvise(
            start,
            mapping.pages().bytes() as usize,
            Advice::LinuxHugepage,
        )
    };
    asked.unwrap();
}
