// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the front end lends it: regions of files, which come and go while rings run.
//!
//! A change happens all at once and under the balloon's lock, so nobody is in the middle of an access: what is
//! plugged in is logged, guarded and known to the device from the next access on; what is taken away is unmapped
//! when the front end gets its answer. For that the device has the memory of the last change to itself: what the
//! crate's rings see has changed before the device is told.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vm_memory::{
    GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryLoadGuard, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::memory::dirty_log::{DirtyLog, LogBitmap};
use crate::memory::sigbus::{Guard, Share};

/// The most regions that a front end may lend: what the vhost-user crate says.
pub const MAX_REGIONS: usize = 509;

/// Guest memory whose writes go to the vhost-user dirty log.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<LogBitmap>>;
/// Guest memory at one moment.
pub type MemoryGuard = GuestMemoryLoadGuard<GuestMemoryMmap<LogBitmap>>;

/// The memory that the front end lends now.
#[derive(Debug)]
pub struct LentMemory {
    // Goes first: see `Guard`.
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
    /// None yet. Its guards are of `share`, which must have room for the regions before and after a change.
    pub fn new(share: Share) -> Self {
        Self {
            guards: Vec::new(),
            memory: Arc::default(),
            share,
        }
    }

    /// It is `memory` from now on. Its writes go to `log`; `wake` is called if a region disappears. Returns what
    /// the device is to use; the memory before is unmapped when nobody uses it any more.
    ///
    /// # Errors
    /// If a region cannot be guarded; nothing has changed then.
    pub fn change(
        &mut self,
        memory: Arc<GuestMemoryMmap<LogBitmap>>,
        log: &Arc<DirtyLog>,
        wake: BorrowedFd<'_>,
    ) -> io::Result<Memory> {
        // A region that stays keeps its guard, which may have something to say.
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
        // First the guards of what goes, then the memory.
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
