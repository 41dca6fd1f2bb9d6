// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the front end lends it: regions of files, which come and go while rings run.
//!
//! A change is made as a whole and under the balloon's lock, so no access is under way. Memory that is plugged in is
//! logged, guarded and known to the device from the next access on. Memory that is removed is unmapped before the front
//! end gets its answer. That works because at that time only the device still has the old memory: the crate changes
//! what its rings see before it tells the device.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::{
    GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryLoadGuard, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::memory::dirty_log::{DirtyLog, LogBitmap};
use crate::memory::sigbus::{Guard, Share};

/// The most regions that a front end may lend: the vhost-user crate's limit.
pub const MAX_REGIONS: usize = 509;

/// Guest memory whose writes go to the vhost-user dirty log.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<LogBitmap>>;
/// Guest memory at one moment.
pub type MemoryGuard = GuestMemoryLoadGuard<GuestMemoryMmap<LogBitmap>>;

/// The memory that the front end lends now.
#[derive(Debug)]
pub struct LentMemory {
    // Dropped first: see `Guard`.
    guards: Vec<Guarded>,
    memory: Arc<GuestMemoryMmap<LogBitmap>>,
    share: Share,
}

#[derive(Debug)]
struct Guarded {
    guard: Guard,
    start: usize,
    length: usize,
}

impl LentMemory {
    /// No memory yet. Guards are taken from `share`, which must have room for the regions before and after a change.
    pub fn new(share: Share) -> Self {
        Self {
            guards: Vec::new(),
            memory: Arc::default(),
            share,
        }
    }

    /// Changes guest memory to `memory`. Its writes go to `log`; `wake` is called if a region disappears. Returns the
    /// memory for the device to use. The old memory is unmapped when nobody uses it any more.
    ///
    /// # Errors
    /// If a region cannot be guarded; nothing has changed then.
    pub fn change(
        &mut self,
        memory: Arc<GuestMemoryMmap<LogBitmap>>,
        log: &Arc<DirtyLog>,
        wake: BorrowedFd<'_>,
    ) -> io::Result<Memory> {
        // A region that stays keeps its guard, which may already have a fault to report.
        let mut added = Vec::new();
        for region in memory.iter() {
            let (start, length) = (region.as_ptr() as usize, region.size());
            if !self
                .guards
                .iter()
                .any(|guarded| guarded.is_at(start, length))
            {
                added.push(Guarded {
                    guard: self.share.guard(region.as_ptr(), length, Some(wake))?,
                    start,
                    length,
                });
            }
        }
        let stays = |guarded: &Guarded| {
            memory
                .iter()
                .any(|region| guarded.is_at(region.as_ptr() as usize, region.size()))
        };
        // First the guards of the removed regions, then their memory.
        self.guards.retain(stays);
        self.guards.append(&mut added);
        for region in memory.iter() {
            region.bitmap().belongs_to(log, region.start_addr().0);
        }
        self.memory = Arc::clone(&memory);
        Ok(Memory::from(memory))
    }

    /// The front end has gone, with all of its memory.
    pub fn clear(&mut self) {
        self.guards.clear();
        self.memory = Arc::default();
    }

    /// Whether the front end has truncated a file of a region that the device has touched since.
    pub fn is_lost(&self) -> bool {
        self.guards.iter().any(|guarded| guarded.guard.is_lost())
    }
}

impl Guarded {
    fn is_at(&self, start: usize, length: usize) -> bool {
        (self.start, self.length) == (start, length)
    }
}
