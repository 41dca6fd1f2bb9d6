// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The managed pages: their states, their versions, and exclusive access to one at a time.
#![allow(unsafe_code)]

use core::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use lacuna_balloon_driver::{Balloon, DmaRegion, Mmio};
use spec::PAGE_SHIFT;
use spec::bare::{BootInfo, PageState};
use spec::stamp::{PAGE_WORDS, Stamp, StampError};

use crate::layout::MemoryLayout;

/// The managed pages. Every vCPU has its own value for the same tables.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    map: MemoryLayout,
    states: &'static [AtomicU8],
    versions: &'static [AtomicU32],
    seed: u64,
}

impl Memory {
    /// The memory of the machine that `info` describes; `None` if it is too small. A new machine's memory is zero, so all
    /// pages are free and were never stamped.
    pub fn new(info: &BootInfo) -> Option<Self> {
        let map = MemoryLayout::new(info)?;
        let pages = map.pages as usize;
        // SAFETY: `map` reserves these bytes for the table; memory is mapped one to one, and all access to
        // them is atomic.
        let states = unsafe {
            core::slice::from_raw_parts(with_exposed_provenance(map.states as usize), pages)
        };
        // SAFETY: as above; the table starts at a page, so it is aligned.
        let versions = unsafe {
            core::slice::from_raw_parts(with_exposed_provenance(map.versions as usize), pages)
        };
        Some(Self {
            map,
            states,
            versions,
            seed: info.seed,
        })
    }

    /// The layout of memory.
    pub fn map(&self) -> &MemoryLayout {
        &self.map
    }

    /// How many pages there are.
    pub fn pages(&self) -> u64 {
        self.map.pages
    }

    /// Whether the page is in `state` at this moment.
    pub fn is(&self, index: u64, state: PageState) -> bool {
        self.states[index as usize].load(Ordering::Relaxed) == state as u8
    }

    /// Changes the page's state from `from` to `to`. Returns false if it is in another state.
    pub fn exchange(&self, index: u64, from: PageState, to: PageState) -> bool {
        self.states[index as usize]
            .compare_exchange(from as u8, to as u8, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Claims the page for this vCPU, if it is in state `from`.
    pub fn claim(&self, index: u64, from: PageState) -> Option<Claim<'_>> {
        let to = match from {
            PageState::Free | PageState::Held => PageState::Taken,
            _ => PageState::Busy,
        };
        self.exchange(index, from, to).then_some(Claim {
            memory: self,
            index,
        })
    }

    /// The memory for the balloon's rings, once.
    pub fn take_rings(&self) -> Option<DmaRegion> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return None;
        }
        let base = NonNull::new(with_exposed_provenance_mut(self.map.rings as usize))?;
        // SAFETY: `map` reserves these bytes for the rings, from the start of a page; memory is mapped one to
        // one; and they are handed out only once.
        Some(unsafe { DmaRegion::new(base, self.map.rings, Balloon::<Mmio>::MEMORY_BYTES) })
    }
}

/// A page that is [`PageState::Busy`] or [`PageState::Taken`] because this vCPU works on it, until it is released.
#[derive(Debug)]
#[must_use = "a claim that is dropped leaves its page busy for ever"]
pub struct Claim<'m> {
    memory: &'m Memory,
    index: u64,
}

impl Claim<'_> {
    /// Writes the next version of the page's stamp into it.
    pub fn stamp(&mut self) {
        let version = self.version().load(Ordering::Relaxed).wrapping_add(1);
        let stamp = self.expected(version);
        stamp.write(self.memory.seed, self.page());
        self.version().store(version, Ordering::Relaxed);
    }

    /// Checks the page's stamp.
    ///
    /// # Errors
    /// [`StampError`]: memory was lost.
    pub fn check(&mut self) -> Result<(), StampError> {
        let stamp = self.expected(self.version().load(Ordering::Relaxed));
        stamp.check(self.memory.seed, self.page())
    }

    /// The address of the page.
    pub fn address(&self) -> u64 {
        self.memory.map.frame(self.index) << PAGE_SHIFT
    }

    /// Releases the page. Other vCPUs see the writes to it before its new state.
    pub fn release(self, to: PageState) {
        self.memory.states[self.index as usize].store(to as u8, Ordering::Release);
    }

    fn expected(&self, version: u32) -> Stamp {
        Stamp {
            address: self.address(),
            version: version.into(),
        }
    }

    fn version(&self) -> &AtomicU32 {
        &self.memory.versions[self.index as usize]
    }

    fn page(&mut self) -> &mut [u64; PAGE_WORDS] {
        let page: *mut [u64; PAGE_WORDS] = with_exposed_provenance_mut(self.address() as usize);
        // SAFETY: the page is managed, so it is memory that is mapped one to one and used for nothing else. This claim is
        // the only one on it, because its state was exchanged atomically.
        unsafe { &mut *page }
    }
}
