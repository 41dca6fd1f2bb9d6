// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The dirty rings of a machine's vCPUs, and the pages that were taken out of them.
//!
//! An entry is taken out of its ring at any time, by whoever comes first: a vCPU whose ring is full, the thread that empties rings,
//! or a harvest. The page stays writable, and its further writes make no entry, until the ring is *reset*. So a page that was
//! taken belongs to the log still. It leaves the log only in a harvest, after a reset.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use host_migrator::{MigrationBitmap, Trace};
use kvm_ioctls::{VcpuFd, VmFd};
use parking_lot::Mutex;
use spec::PageRange;
use spec::trace::{Event, PageBits};

use super::mapping::{self, Ring};

/// How many entries a ring has, if KVM allows that many: those of 256 MiB.
pub const RING_ENTRIES: u32 = 65536;

/// The rings of a machine.
#[derive(Debug)]
pub struct DirtyRings {
    vm: Arc<VmFd>,
    entries: u32,
    /// The pages of each memory slot.
    slots: Vec<PageRange>,
    taken: Mutex<Taken>,
    /// Entries of each vCPU so far.
    dirtied: Vec<AtomicU64>,
    /// How often a vCPU had to leave the guest because its ring was full.
    full: AtomicU64,
    trace: Trace,
}

#[derive(Debug)]
struct Taken {
    rings: Vec<Ring>,
    /// Pages that were taken, and that no harvest has had.
    pages: MigrationBitmap,
    /// Pages that are being taken; empty otherwise.
    new: MigrationBitmap,
}

impl DirtyRings {
    /// Gives `vm` rings of at most `entries` for `vcpus` vCPUs, which must be made afterwards. `slots` has the pages of its memory slots.
    /// What is taken out of them between harvests is recorded in `trace`.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::Unsupported`] if it has no rings.
    pub fn enable(
        vm: Arc<VmFd>,
        entries: u32,
        vcpus: usize,
        slots: &[PageRange],
        trace: &Trace,
    ) -> io::Result<Self> {
        let entries = mapping::enable(&vm, entries)?;
        let end = slots.iter().map(|pages| pages.end()).max().unwrap_or(0);
        Ok(Self {
            vm,
            entries,
            slots: slots.to_vec(),
            taken: Mutex::new(Taken {
                rings: Vec::with_capacity(vcpus),
                pages: MigrationBitmap::new(end),
                new: MigrationBitmap::new(end),
            }),
            dirtied: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            full: AtomicU64::new(0),
            trace: trace.clone(),
        })
    }

    /// Adds the ring of the next vCPU.
    ///
    /// # Errors
    /// The system's, if it cannot be mapped.
    pub(crate) fn add(&self, vcpu: &VcpuFd) -> io::Result<()> {
        let ring = Ring::of(vcpu, self.entries)?;
        self.taken.lock().rings.push(ring);
        Ok(())
    }

    /// Makes room in a ring that is full.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn make_room(&self) -> io::Result<()> {
        self.full.fetch_add(1, Ordering::Relaxed);
        self.empty()
    }

    /// How often a ring was full, so that its vCPU had to wait.
    pub fn full(&self) -> u64 {
        self.full.load(Ordering::Relaxed)
    }

    /// Takes all entries out of the rings. No page is protected by that. Returns how many entries each vCPU has made so far.
    pub fn take(&self) -> Vec<u64> {
        self.keep_all(&mut self.taken.lock());
        let dirtied = self.dirtied.iter();
        dirtied.map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Takes all entries, and protects their pages.
    pub(super) fn empty(&self) -> io::Result<()> {
        let mut taken = self.taken.lock();
        self.keep_all(&mut taken);
        mapping::reset(&self.vm).map(|_| ())
    }

    /// Takes all entries, and keeps their pages for a harvest.
    fn keep_all(&self, taken: &mut Taken) {
        let Taken { rings, pages, new } = taken;
        self.take_into(rings, new);
        for word in new.occupied() {
            let mask = new.load(word);
            let word = word as u64;
            (self.trace).record(Event::RingTaken(PageBits { word, mask }));
        }
        new.move_into(pages, 0);
    }

    /// Takes all entries and forgets them. Their pages are protected.
    pub(super) fn forget(&self) -> io::Result<()> {
        let mut taken = self.taken.lock();
        let Taken { rings, pages, .. } = &mut *taken;
        self.take_into(rings, pages);
        mapping::reset(&self.vm)?;
        pages.clear_all();
        Ok(())
    }

    /// Moves all pages of the log into `bitmap`. They are protected before. Returns how many they were.
    pub(super) fn harvest(&self, bitmap: &MigrationBitmap) -> io::Result<u64> {
        let mut taken = self.taken.lock();
        let Taken { rings, pages, .. } = &mut *taken;
        self.take_into(rings, pages);
        // If a sender saw the pages earlier, it could copy one, and a write after that copy would make no entry.
        mapping::reset(&self.vm)?;
        Ok(pages.move_into(bitmap, 0))
    }

    fn take_into(&self, rings: &mut [Ring], pages: &MigrationBitmap) {
        for (ring, dirtied) in rings.iter_mut().zip(&self.dirtied) {
            let mut count = 0;
            // It ends: KVM does not write to entries that were taken before they are reset.
            while let Some((slot, page)) = ring.take() {
                count += 1;
                // The upper half is the number of an address space. There is one.
                let slot = self.slots.get((slot & 0xffff) as usize);
                // Slots that are replaced may have had other pages.
                if let Some(slot) = slot.filter(|slot| page < slot.count()) {
                    let page = slot.first() + page;
                    pages.merge((page / 64) as usize, 1 << (page % 64));
                }
            }
            dirtied.fetch_add(count, Ordering::Relaxed);
        }
    }
}
