// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory: memory files, mapped once for the guest and once for the VMM's own writes.

use std::io;
use std::sync::Arc;

use host_migrator::{GuestRam, RamError, RamRegion};
use spec::PAGE_SIZE;
use spec::bare::{HIGH_MEMORY_START, LOW_MEMORY_END};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::advice;
use crate::own_writes::OwnWrites;

/// Guest memory for the VMM's own writes. Every write sets the page's bit in a log.
pub type OwnMemory = GuestMemoryMmap<OwnWrites>;

/// How guest memory is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Ask the kernel for huge pages. There may be none.
    pub huge_pages: bool,
    /// Allocate all memory at once, instead of each page when it is first touched.
    pub prefault: bool,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            huge_pages: true,
            prefault: false,
        }
    }
}

/// The memory cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No memory, or not a whole number of pages.
    #[error(
        "guest memory of {0} bytes is not possible: the size must be a multiple of 4096 and not 0"
    )]
    Size(u64),
    /// The kernel refused a memory file.
    #[error("cannot make a memory file: {0}")]
    File(#[source] io::Error),
    /// The kernel refused memory.
    #[error("cannot take the guest's memory from the host: {0}")]
    Prefault(#[source] io::Error),
    /// The mapping failed.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The mapping for the VMM's own writes failed.
    #[error("cannot map guest memory: {0}")]
    OwnMapping(#[from] vm_memory::mmap::FromRangesError),
}

/// The memory of a machine: from 0 to [`LOW_MEMORY_END`], and the rest from [`HIGH_MEMORY_START`] on.
#[derive(Debug)]
pub struct MachineMemory {
    ram: Arc<GuestRam>,
    own: Arc<OwnMemory>,
    files: Vec<RamRegion>,
    options: MemoryOptions,
}

impl MachineMemory {
    /// Makes `bytes` of zero memory.
    ///
    /// # Errors
    /// [`MemoryError`] for an impossible size, or if the kernel refuses.
    pub fn new(bytes: u64, options: MemoryOptions) -> Result<Self, MemoryError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::Size(bytes));
        }
        let low = bytes.min(LOW_MEMORY_END);
        let mut files = Vec::new();
        for (gpa, len) in [(0, low), (HIGH_MEMORY_START, bytes - low)] {
            if len > 0 {
                files.push(RamRegion::new(gpa, len).map_err(MemoryError::File)?);
            }
        }
        Self::map(files, options)
    }

    /// Maps existing memory files.
    ///
    /// # Errors
    /// [`MemoryError`] for files that do not fit their regions, or if the kernel refuses.
    pub fn map(files: Vec<RamRegion>, options: MemoryOptions) -> Result<Self, MemoryError> {
        let memory = Self::lent(files, options)?;
        if options.prefault {
            advice::populate(&memory.ram).map_err(MemoryError::Prefault)?;
        }
        Ok(memory)
    }

    /// As [`MachineMemory::map`], for memory in which a guest runs elsewhere: nothing is allocated.
    ///
    /// # Errors
    /// As [`MachineMemory::map`].
    pub fn lent(files: Vec<RamRegion>, options: MemoryOptions) -> Result<Self, MemoryError> {
        let ram = GuestRam::map(duplicate(&files).map_err(MemoryError::File)?)?;
        if options.huge_pages
            && let Err(error) = advice::huge_pages(&ram)
        {
            log::info!("guest memory has no huge pages: {error}");
        }
        let own = duplicate(&files)
            .map_err(MemoryError::File)?
            .into_iter()
            .map(|region| {
                let file = FileOffset::new(region.file, region.offset);
                (GuestAddress(region.gpa), region.len as usize, Some(file))
            });
        Ok(Self {
            ram: Arc::new(ram),
            own: Arc::new(OwnMemory::from_ranges_with_files(own)?),
            files,
            options,
        })
    }

    /// How the memory was made.
    pub fn options(&self) -> MemoryOptions {
        self.options
    }

    /// The memory as the guest and the migration see it.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The memory for the VMM's own writes.
    pub fn own(&self) -> &Arc<OwnMemory> {
        &self.own
    }

    /// The memory files, for other processes to map.
    ///
    /// # Errors
    /// [`io::Error`] if a file cannot be duplicated.
    pub fn files(&self) -> io::Result<Vec<RamRegion>> {
        duplicate(&self.files)
    }
}

fn duplicate(files: &[RamRegion]) -> io::Result<Vec<RamRegion>> {
    let copy = |region: &RamRegion| {
        Ok(RamRegion {
            gpa: region.gpa,
            len: region.len,
            file: region.file.try_clone()?,
            offset: region.offset,
        })
    };
    files.iter().map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::SealFlags;
    use spec::PageRange;

    #[test]
    fn memory_above_three_gibibytes_goes_on_at_four() {
        let bytes = LOW_MEMORY_END + 3 * PAGE_SIZE;
        let memory = MachineMemory::new(bytes, MemoryOptions::default()).unwrap();
        let low = PageRange::new(0, LOW_MEMORY_END / PAGE_SIZE).unwrap();
        let high = PageRange::new(HIGH_MEMORY_START / PAGE_SIZE, 3).unwrap();
        assert_eq!(memory.ram().regions(), [low, high]);
    }

    #[test]
    fn sizes_that_are_not_whole_pages_are_refused() {
        for bytes in [0, 1, PAGE_SIZE + 1] {
            let made = MachineMemory::new(bytes, MemoryOptions::default());
            assert!(matches!(made, Err(MemoryError::Size(size)) if size == bytes));
        }
    }

    #[test]
    fn nobody_can_truncate_the_files_under_the_mapping() {
        let memory = MachineMemory::new(PAGE_SIZE, MemoryOptions::default()).unwrap();
        let files = memory.files().unwrap();
        assert!(files[0].file.set_len(0).is_err());
        assert!(files[0].file.set_len(2 * PAGE_SIZE).is_err());
        let more = rustix::fs::fcntl_add_seals(&files[0].file, SealFlags::FUTURE_WRITE);
        assert!(more.is_err(), "nor keep others from writing them");
    }

    #[test]
    fn prefaulted_memory_has_no_holes() {
        let options = MemoryOptions {
            prefault: true,
            ..Default::default()
        };
        let memory = MachineMemory::new(64 * PAGE_SIZE, options).unwrap();
        assert_eq!(memory.ram().holes().unwrap(), []);
        let memory = MachineMemory::new(64 * PAGE_SIZE, MemoryOptions::default()).unwrap();
        assert_eq!(
            memory.ram().holes().unwrap(),
            [PageRange::new(0, 64).unwrap()]
        );
    }
}
