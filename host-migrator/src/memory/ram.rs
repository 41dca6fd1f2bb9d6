// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the engine sees it: regions of memory files, mapped shared.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use spec::{PAGE_SIZE, PageRange};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion, VolatileSlice,
};

use crate::memory::error::RamError;
use crate::memory::guest_memory::GuestMemory;
use crate::memory::holes::{self, HoleBudget};
use crate::memory::layout::Layout;
use crate::memory::ram_region::RamRegion;

/// The guest's memory, mapped shared into this process.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestMemoryMmap<()>,
    layout: Layout,
    /// Of each region, the bytes of its file's pages: more than [`PAGE_SIZE`] on hugetlbfs.
    host_page_bytes: Vec<u64>,
    /// Nothing was written since it was populated.
    is_known_zero: AtomicBool,
}

impl GuestRam {
    /// Maps `regions`, which must be in ascending order.
    ///
    /// # Errors
    /// [`RamError`] for regions that are invalid or cannot be mapped.
    pub fn map(regions: Vec<RamRegion>) -> Result<Self, RamError> {
        let mut ranges = Vec::new();
        let mut host_page_bytes = Vec::new();
        let mut mapped = Vec::new();
        for region in regions {
            let bad = RamError::Region {
                gpa: region.gpa,
                len: region.len,
            };
            let range = PageRange::inside(region.gpa, region.len).filter(|range| {
                range.bytes() == region.len && range.first() * PAGE_SIZE == region.gpa
            });
            let (Some(range), Ok(size)) = (range, usize::try_from(region.len)) else {
                return Err(bad);
            };
            host_page_bytes.push(region.host_page_bytes()?);
            let file = FileOffset::new(region.file, region.offset);
            let mapping = MmapRegion::from_file(file, size).map_err(io::Error::other)?;
            let guest_region =
                GuestRegionMmap::new(mapping, GuestAddress(region.gpa)).ok_or(bad)?;
            ranges.push(range);
            mapped.push(guest_region);
        }
        let layout = Layout::new(ranges)?;
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?;
        Ok(Self {
            memory,
            layout,
            host_page_bytes,
            is_known_zero: AtomicBool::new(false),
        })
    }

    /// The mapping, for uses outside the engine: memory slots, vhost memory tables.
    pub fn memory(&self) -> &GuestMemoryMmap<()> {
        &self.memory
    }

    /// Where it lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[PageRange] {
        self.layout.regions()
    }

    /// Pages that a bitmap from guest-physical 0 must have bits for.
    pub fn bitmap_pages(&self) -> u64 {
        self.layout.bitmap_pages()
    }

    /// Pages of memory, without the gaps between regions.
    pub fn pages(&self) -> u64 {
        self.layout.pages()
    }

    /// Copies the pages of `range` into `out`. The guest may write a page meanwhile. Then the copy may be torn, and the page
    /// is in the dirty log.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] if the pages are not in one region.
    ///
    /// # Panics
    /// If `out` has another size than the pages.
    pub fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        assert_eq!(out.len() as u64, range.bytes());
        self.slice(range)?.copy_to(out);
        Ok(())
    }

    /// As [`GuestRam::read`], from the memory file: a page that is missing ([`paging`](crate::paging)) reads as zeros, and nobody
    /// waits for it.
    ///
    /// # Errors
    /// As [`GuestRam::read`], or the error of the file.
    ///
    /// # Panics
    /// As [`GuestRam::read`].
    pub fn peek(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        assert_eq!(out.len() as u64, range.bytes());
        let (file, offset) = self.file_of(range)?;
        Ok(file.read_exact_at(out, offset)?)
    }

    /// Writes `content` to the pages of `range`.
    ///
    /// The bytes are written through the memory file, not through the mapping: the kernel need not clear a page that is
    /// written whole, and there is no page fault. If the host has no free memory, this fails with an error; a write through
    /// the mapping would end the process.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`] if the pages are not in one region, or the error of the file.
    ///
    /// # Panics
    /// If `content` has another size than the pages.
    pub fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        assert_eq!(content.len() as u64, range.bytes());
        if self.is_known_zero.load(Ordering::Relaxed) {
            self.is_known_zero.store(false, Ordering::Relaxed);
        }
        let (file, offset) = self.file_of(range)?;
        match file.write_all_at(content, offset) {
            // Files of huge pages can only be written through a mapping.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.slice(range)?.copy_from(content);
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Takes memory of the host for every page now, and makes all of them zero. A guest that is received then arrives faster: new
    /// pages cost more than to copy them. The host needs all of the guest's memory, what the guest does not use included.
    ///
    /// For a destination that is about to wait: until the guest has arrived, nobody but the engine may write to the memory.
    /// The engine relies on it being zero, and does not clear it again for the first guest.
    ///
    /// # Errors
    /// [`RamError`] if the host has not enough memory.
    pub fn populate(&self) -> Result<(), RamError> {
        for region in self.layout.regions() {
            self.discard(*region)?;
            let (file, offset) = self.file_of(*region)?;
            rustix::fs::fallocate(file, FallocateFlags::empty(), offset, region.bytes())
                .map_err(io::Error::from)?;
        }
        self.is_known_zero.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the pages of `range` zero, by punching a hole in the memory file. Zeros are written to parts of a huge page
    /// (hugetlbfs), because older kernels silently leave those unchanged.
    ///
    /// # Errors
    /// [`RamError::OutOfRange`], or the error of the file.
    pub fn discard(&self, range: PageRange) -> Result<(), RamError> {
        let (file, offset) = self.file_of(range)?;
        let page = self.host_page_bytes[self.layout.check(range)?];
        let end = offset + range.bytes();
        let (first_whole, last_whole) = (offset.next_multiple_of(page), end / page * page);
        if first_whole >= last_whole {
            return self.write_zeros(range);
        }
        let part = |from: u64, to: u64| {
            PageRange::new(
                range.first() + (from - offset) / PAGE_SIZE,
                (to - from) / PAGE_SIZE,
            )
        };
        for edge in [part(offset, first_whole), part(last_whole, end)] {
            edge.map_or(Ok(()), |edge| self.write_zeros(edge))?;
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, punch, first_whole, last_whole - first_whole)
            .map_err(io::Error::from)?;
        Ok(())
    }

    fn write_zeros(&self, range: PageRange) -> Result<(), RamError> {
        let slice = self.slice(range)?;
        let zeros = [0; PAGE_SIZE as usize];
        for at in (0..slice.len()).step_by(zeros.len()) {
            slice
                .subslice(at, zeros.len())
                .map_err(io::Error::other)?
                .copy_from(&zeros);
        }
        Ok(())
    }

    /// Calls `found` with the pages of memory that were never written since the memory files were made or punched:
    /// holes of the files. True if these are all holes; false if `budget` was used up before.
    ///
    /// # Errors
    /// The error of the file.
    pub fn find_holes(
        &self,
        budget: &mut HoleBudget<'_>,
        found: &mut dyn FnMut(PageRange),
    ) -> Result<bool, RamError> {
        for region in self.layout.regions() {
            let (file, start) = self.file_of(*region)?;
            let page_at = |offset: u64| region.first() * PAGE_SIZE + (offset - start);
            let mut in_region = |hole: Range<u64>| {
                let pages = PageRange::inside(page_at(hole.start), hole.end - hole.start);
                pages.into_iter().for_each(&mut *found);
            };
            let range = start..start + region.bytes();
            if !holes::in_file(file, range, budget, &mut in_region)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All holes of the memory files, as [`GuestRam::find_holes`] finds them. A guest can make as many as it has pages.
    ///
    /// # Errors
    /// The error of the file.
    pub fn holes(&self) -> Result<Vec<PageRange>, RamError> {
        let mut holes = Vec::new();
        self.find_holes(&mut HoleBudget::unlimited(&mut || true), &mut |hole| {
            holes.push(hole)
        })?;
        Ok(holes)
    }

    /// The region's mapped slice for `range`.
    fn slice(&self, range: PageRange) -> Result<VolatileSlice<'_, impl BitmapSlice>, RamError> {
        // No overflow, because the pages are in a region.
        self.layout.check(range)?;
        self.memory
            .get_slice(
                GuestAddress(range.first() * PAGE_SIZE),
                range.bytes() as usize,
            )
            .map_err(|_| out_of_range(range))
    }

    /// Whether no page was written since the memory files were made. Punching holes in a large file takes milliseconds, even if it is
    /// empty.
    fn has_no_pages(&self) -> bool {
        let mut files = self.memory.iter().map(|region| region.file_offset());
        files.all(|file| file.is_some_and(|file| holes::is_empty(file.file()).unwrap_or(false)))
    }

    fn file_of(&self, range: PageRange) -> Result<(&File, u64), RamError> {
        self.layout.check(range)?;
        let gpa = GuestAddress(range.first() * PAGE_SIZE);
        let region = self.memory.find_region(gpa).ok_or(out_of_range(range))?;
        let file = region.file_offset().ok_or(out_of_range(range))?;
        let into = gpa.0 - region.start_addr().0;
        Ok((file.file(), file.start() + into))
    }
}

impl GuestMemory for GuestRam {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, range: PageRange, out: &mut [u8]) -> Result<(), RamError> {
        Self::read(self, range, out)
    }

    fn write(&self, range: PageRange, content: &[u8]) -> Result<(), RamError> {
        Self::write(self, range, content)
    }

    fn discard(&self, range: PageRange) -> Result<(), RamError> {
        Self::discard(self, range)
    }

    fn is_written_by_one(&self) -> bool {
        true
    }

    fn is_known_zero(&self) -> bool {
        self.is_known_zero.load(Ordering::Relaxed) || self.has_no_pages()
    }

    fn find_holes(
        &self,
        budget: &mut HoleBudget<'_>,
        found: &mut dyn FnMut(PageRange),
    ) -> Result<bool, RamError> {
        Self::find_holes(self, budget, found)
    }

    fn files(&self) -> io::Result<Option<Vec<RamRegion>>> {
        let regions = self.memory.iter().filter_map(|region| {
            // Each is made of a file.
            let file = region.file_offset()?;
            Some(file.file().try_clone().map(|copy| RamRegion {
                gpa: region.start_addr().0,
                len: region.len(),
                file: copy,
                offset: file.start(),
            }))
        });
        regions.collect::<io::Result<_>>().map(Some)
    }
}

fn out_of_range(range: PageRange) -> RamError {
    RamError::OutOfRange {
        first: range.first(),
        end: range.end(),
    }
}

#[cfg(test)]
mod tests;
