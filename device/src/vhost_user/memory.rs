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

use crate::vhost_user::dirty_log::{DirtyLog, LogBitmap};
use crate::vhost_user::sigbus::Guard;

/// Guest memory whose writes go to the vhost-user dirty log.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<LogBitmap>>;
/// Guest memory at one moment.
pub type MemoryGuard = GuestMemoryLoadGuard<GuestMemoryMmap<LogBitmap>>;

/// The memory that the front end lends now.
#[derive(Debug, Default)]
pub struct LentMemory {
    // Goes first: see `Guard`.
    guards: Vec<Guarded>,
    memory: Arc<GuestMemoryMmap<LogBitmap>>,
}

#[derive(Debug)]
struct Guarded {
    guard: Guard,
    start: usize,
    length: usize,
}

impl LentMemory {
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
        let mut kept = std::mem::take(&mut self.guards);
        for region in memory.iter() {
            region.bitmap().belongs_to(log, region.start_addr().0);
            let (start, length) = (region.as_ptr(), region.size());
            let place =
                |guarded: &Guarded| (guarded.start, guarded.length) == (start as usize, length);
            // A region that stays keeps its guard, which may have something to say.
            let guard = match kept.iter().position(place) {
                Some(at) => kept.swap_remove(at).guard,
                None => Guard::new(start, length, wake)?,
            };
            self.guards.push(Guarded {
                guard,
                start: start as usize,
                length,
            });
        }
        // First the guards of what goes, then the memory.
        drop(kept);
        self.memory = Arc::clone(&memory);
        Ok(Memory::from(memory))
    }

    /// Whether the front end has truncated a file of a region that the device has touched since.
    pub fn is_lost(&self) -> bool {
        self.guards.iter().any(|guarded| guarded.guard.is_lost())
    }
}
