// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty logs: the pages that each writer has written since its log was last cleared.

use crate::pages::{ModelPages, Page, Renaming};

/// The logs of all who write to guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Logs {
    /// The migrator has switched logging on.
    pub(crate) on: bool,
    /// The vCPUs' writes.
    pub(crate) kvm: Kvm,
    /// A vhost-user back end's log.
    pub(crate) back_end: ModelPages,
    /// Pages that the back end has written and not logged yet.
    pub(crate) unlogged: ModelPages,
    /// The VMM's own writes.
    pub(crate) own: ModelPages,
}

impl Logs {
    /// Starts all logs. KVM's log first says that every page is dirty (`KVM_DIRTY_LOG_INITIALLY_SET`). The vCPUs have a ring of so many
    /// `entries`; 0: a bitmap.
    pub(crate) fn start(&mut self, pages: u8, entries: u8) {
        *self = Self {
            on: true,
            unlogged: self.unlogged,
            ..Self::default()
        };
        self.kvm.entries = entries;
        self.kvm.dirty = ModelPages::all(pages);
        self.kvm.fetched = self.kvm.dirty;
    }

    /// Stops all logs and clears them.
    pub(crate) fn stop(&mut self) {
        *self = Self {
            unlogged: self.unlogged,
            ..Self::default()
        };
    }

    /// Whether a vCPU that writes `page` finds its ring full, and so has to wait until the ring is emptied.
    pub(crate) fn has_no_room(&self, page: Page) -> bool {
        self.on && self.kvm.armed.has(page) && self.kvm.is_full()
    }

    /// A vCPU writes.
    pub(crate) fn written_by_guest(&mut self, page: Page) {
        if self.on {
            self.kvm.write(page);
        }
    }

    /// The VMM writes.
    pub(crate) fn written_by_vmm(&mut self, page: Page) {
        if self.on {
            self.own.insert(page);
        }
    }

    /// The device discards a page's memory, and logs that.
    pub(crate) fn discarded(&mut self, page: Page) {
        if self.on {
            self.back_end.insert(page);
        }
    }

    /// The back end logs what it has written.
    pub(crate) fn catch_up(&mut self) {
        let late = self.unlogged.take();
        if self.on {
            self.back_end.merge(late);
        }
    }

    pub(crate) fn renamed(&self, names: &Renaming) -> Self {
        Self {
            on: self.on,
            kvm: Kvm {
                dirty: names.set(self.kvm.dirty),
                armed: names.set(self.kvm.armed),
                fetched: names.set(self.kvm.fetched),
                ring: names.set(self.kvm.ring),
                entries: self.kvm.entries,
            },
            back_end: names.set(self.back_end),
            unlogged: names.set(self.unlogged),
            own: names.set(self.own),
        }
    }
}

/// KVM's dirty log, with `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`. Reading the log does not clear it. Clearing bits
/// write-protects their pages.
///
/// Or its ring (`KVM_CAP_DIRTY_LOG_RING_ACQ_REL`). Then the bits are those of pages that were taken out of the ring and that no
/// harvest has had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kvm {
    /// The dirty bits.
    pub(crate) dirty: ModelPages,
    /// Pages that are write-protected: the next write sets their bit.
    pub(crate) armed: ModelPages,
    /// Bits that were read and are still to be cleared. Their pages are not armed.
    pub(crate) fetched: ModelPages,
    /// Pages that have an entry in the ring.
    pub(crate) ring: ModelPages,
    /// How many entries the ring has; 0: the log is a bitmap.
    entries: u8,
}

impl Kvm {
    fn is_full(&self) -> bool {
        self.entries > 0 && self.ring.iter().count() >= usize::from(self.entries)
    }

    fn write(&mut self, page: Page) {
        // A write to a page that is not protected causes no fault, so the bit does not change.
        if !self.armed.has(page) {
            return;
        }
        self.armed.remove(page);
        match self.entries {
            0 => self.dirty.insert(page),
            // It does not come here, if it waits for room.
            _ if self.is_full() => {}
            _ => self.ring.insert(page),
        }
    }

    /// The pages in the log.
    pub(crate) fn all(&self) -> ModelPages {
        let mut all = self.dirty;
        all.merge(self.ring);
        all
    }

    /// `KVM_GET_DIRTY_LOG`; or takes all entries out of the ring.
    pub(crate) fn read(&mut self) -> ModelPages {
        self.dirty.merge(self.ring.take());
        self.fetched.merge(self.dirty);
        self.dirty
    }

    /// `KVM_CLEAR_DIRTY_LOG`; or `KVM_RESET_DIRTY_RINGS`, which protects no page that has another entry since.
    pub(crate) fn clear(&mut self, pages: ModelPages) {
        self.dirty.clear(pages);
        self.armed.merge(pages.minus(self.ring));
        self.fetched.clear(pages);
    }

    /// Takes all entries out of the ring and resets it, so that their pages are protected again. If they are not kept, the log has
    /// them no more.
    pub(crate) fn empty_ring(&mut self, keeps: bool) {
        let taken = self.ring.take();
        self.armed.merge(taken);
        if keeps {
            self.dirty.merge(taken);
        }
    }
}
