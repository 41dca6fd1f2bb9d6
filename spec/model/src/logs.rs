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
    /// Starts all logs. KVM's log first says that every page is dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
    pub(crate) fn start(&mut self, pages: u8) {
        *self = Self {
            on: true,
            unlogged: self.unlogged,
            ..Self::default()
        };
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
            },
            back_end: names.set(self.back_end),
            unlogged: names.set(self.unlogged),
            own: names.set(self.own),
        }
    }
}

/// KVM's dirty log, with `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`. Reading the log does not clear it. Clearing bits
/// write-protects their pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kvm {
    /// The dirty bits.
    pub(crate) dirty: ModelPages,
    /// Pages that are write-protected: the next write sets their bit.
    pub(crate) armed: ModelPages,
    /// Bits that were read and are still to be cleared. Their pages are not armed.
    pub(crate) fetched: ModelPages,
}

impl Kvm {
    fn write(&mut self, page: Page) {
        // A write to a page that is not protected causes no fault, so the bit does not change.
        if self.armed.has(page) {
            self.armed.remove(page);
            self.dirty.insert(page);
        }
    }

    /// `KVM_GET_DIRTY_LOG`.
    pub(crate) fn read(&mut self) -> ModelPages {
        self.fetched.merge(self.dirty);
        self.dirty
    }

    /// `KVM_CLEAR_DIRTY_LOG`.
    pub(crate) fn clear(&mut self, pages: ModelPages) {
        self.dirty.clear(pages);
        self.armed.merge(pages);
        self.fetched.clear(pages);
    }
}
