// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Anonymous memory that is returned to the kernel as a whole.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::slice;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use spec::PAGE_SIZE;
use spec::stamp::PAGE_WORDS;

/// One page of an [`Area`].
pub type Page = [u64; PAGE_WORDS];

/// The balloon driver hints free blocks of this size (order 10 on x86-64).
const HINT_BLOCK: usize = 4 << 20;
/// Bytes of a page, as `usize`.
pub const PAGE: usize = PAGE_SIZE as usize;

/// Private anonymous memory, mapped when made and unmapped when dropped.
///
/// It begins at a multiple of [`HINT_BLOCK`], so that the kernel can use huge pages for it. They are filled with few
/// faults, and are freed as large blocks, which merge into blocks of the size that the driver hints.
pub struct Area {
    start: NonNull<Page>,
    pages: usize,
}

impl Area {
    /// Maps `bytes`, rounded up to whole pages; the memory reads as zero.
    pub fn map(bytes: usize) -> io::Result<Self> {
        if bytes == 0 {
            return Ok(Self {
                start: NonNull::dangling(),
                pages: 0,
            });
        }
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = bytes.checked_next_multiple_of(PAGE).ok_or_else(too_large)?;
        let reserved = bytes.checked_add(HINT_BLOCK).ok_or_else(too_large)?;
        // SAFETY: without MAP_FIXED the kernel chooses a free range, so other memory does not change.
        let reservation = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                reserved,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let before = reservation.align_offset(HINT_BLOCK);
        // SAFETY: `before < HINT_BLOCK` (page-aligned, as the mapping is), so all three parts lie in
        // the reservation; the first and the last are unmapped and never used.
        let start = unsafe {
            let start = reservation.byte_add(before);
            if before > 0 {
                munmap(reservation, before)?;
            }
            if before < HINT_BLOCK {
                munmap(start.byte_add(bytes), HINT_BLOCK - before)?;
            }
            start
        };
        Ok(Self {
            start: NonNull::new(start.cast()).expect("mmap never returns null"),
            pages: bytes / PAGE,
        })
    }

    /// Makes the kernel use single pages for the memory from now on, instead of huge pages.
    pub fn use_small_pages(&self) -> io::Result<()> {
        if self.pages == 0 {
            return Ok(());
        }
        let bytes = self.pages * PAGE;
        // SAFETY: this is the mapping of `map`; its content does not change.
        match unsafe { madvise(self.start.as_ptr().cast(), bytes, Advice::LinuxNoHugepage) } {
            // A kernel without huge pages does not know the advice.
            Err(Errno::INVAL) => Ok(()),
            result => Ok(result?),
        }
    }

    /// Returns the page at `index`, which must exist, to the kernel. It reads as zero from then on.
    pub fn free_page(&mut self, index: usize) -> io::Result<()> {
        let page: *mut Page = &mut self.pages_mut()[index];
        // SAFETY: the page is in the mapping of `map`, there is no reference to it, and zeros are a valid page.
        Ok(unsafe { madvise(page.cast(), PAGE, Advice::LinuxDontNeed) }?)
    }

    /// All pages.
    pub fn pages(&self) -> &[Page] {
        // SAFETY: `start` and `pages` describe memory that is mapped until drop (or nothing), and every
        // bit pattern is a page.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.pages) }
    }

    /// All pages, mutable.
    pub fn pages_mut(&mut self) -> &mut [Page] {
        // SAFETY: as in `pages`; `&mut self` makes this the only reference.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.pages) }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if self.pages > 0 {
            // SAFETY: this is the mapping of `map`, and no reference outlives `self`.
            let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.pages * PAGE) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_aligned_zeroed_and_writable_to_its_last_word() {
        let mut area = Area::map(3 * PAGE - 1).unwrap();
        assert_eq!(area.pages().len(), 3);
        assert_eq!(area.pages().as_ptr().addr() % HINT_BLOCK, 0);
        assert!(area.pages().as_flattened().iter().all(|&word| word == 0));
        area.pages_mut()[2][PAGE_WORDS - 1] = 1;
        assert_eq!(area.pages()[2][PAGE_WORDS - 1], 1);
        assert!(Area::map(0).unwrap().pages().is_empty());
        assert!(Area::map(0).unwrap().use_small_pages().is_ok());
        assert!(Area::map(usize::MAX).is_err());
    }

    #[test]
    fn a_freed_page_reads_as_zero_and_its_neighbours_as_before() {
        let mut area = Area::map(3 * PAGE).unwrap();
        area.use_small_pages().unwrap();
        area.pages_mut().as_flattened_mut().fill(7);
        area.free_page(1).unwrap();
        let [before, freed, after] = area.pages() else {
            panic!("three pages")
        };
        assert!(freed.iter().all(|&word| word == 0));
        assert!(before.iter().chain(after).all(|&word| word == 7));
    }
}
