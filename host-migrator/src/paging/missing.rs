// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages that are missing, and how each of them comes into being, once.
//!
//! A page is *wanted* until somebody claims it, and *absent* until its content is there. A page that is not absent and is
//! faulted on is zero: it never had content, or it was discarded. So what was discarded never comes back.
//!
//! ```text
//!             claim                place
//!   wanted ──────────> claimed ──────────────> present
//!      └───────────────────┴──── discard ────> zero
//! ```

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use rustix::io::Errno;
use spec::hint_map::word_masks;
use spec::{PAGE_SIZE, PageRange};

use super::coverage::watched;
use super::error::PagingError;
use super::pager::address;
use super::userfaultfd::{Done, Message, Userfaultfd};
use crate::memory::bitmap::MigrationBitmap;
use crate::memory::mapping::Mapping;

/// Zero pages that are answered at once, where a zero page takes memory.
const ZERO_RUN: u64 = 16;
/// The same in another process's anonymous memory, where it takes none.
const FOREIGN_ZERO_RUN: u64 = 512;
/// Messages that are read at once. More would wait for each other while other threads have nothing to do.
const MESSAGES: usize = 4;

/// The missing pages of a guest.
#[derive(Debug)]
pub struct MissingPages {
    /// `None` when the kernel has the faults back.
    uffd: RwLock<Option<Userfaultfd>>,
    is_own: bool,
    tells_removals: bool,
    /// By address.
    mappings: Vec<Mapping>,
    /// The parts of the mappings that are registered, by address.
    watched: Vec<Mapping>,
    wanted: MigrationBitmap,
    absent: MigrationBitmap,
    total: u64,
    left: AtomicU64,
    /// Held while pages are placed, and exclusively while they are discarded.
    discards: RwLock<()>,
}

/// What a thread that waits for a page needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The content of this page, which the caller has claimed.
    Content(u64),
    /// Nothing from the caller: another has claimed the page, and will wake the thread.
    Patience,
    /// Zeros.
    Zero,
}

impl MissingPages {
    /// All pages of `content` are missing, and have content; all others are zero. `mappings` is everywhere where the guest's
    /// pages are mapped and may be touched before they are there. Those of this process are registered with `uffd` here, and must
    /// be empty; another process has done so with its own.
    ///
    /// Other processes that map the same memory do not fault here. They must not touch it before [`MissingPages::left`] is 0.
    ///
    /// # Errors
    /// [`PagingError`] if a mapping cannot be registered.
    pub fn new(
        uffd: Userfaultfd,
        mut mappings: Vec<Mapping>,
        content: MigrationBitmap,
    ) -> Result<Self, PagingError> {
        mappings.sort_by_key(Mapping::address);
        let mut parts = mappings.clone();
        if uffd.is_own() {
            let regions = mappings.iter().map(|mapping| {
                let parts = watched(&[mapping.pages()], &content);
                parts.into_iter().filter_map(|part| mapping.part(part))
            });
            parts = regions.flatten().collect();
            parts.iter().try_for_each(|part| uffd.register(part))?;
        }
        let wanted = MigrationBitmap::new(content.pages());
        for word in content.occupied() {
            wanted.merge(word, content.load(word));
        }
        let total = content.count();
        Ok(Self {
            is_own: uffd.is_own(),
            tells_removals: uffd.tells_removals(),
            uffd: RwLock::new(Some(uffd)),
            mappings,
            watched: parts,
            wanted,
            absent: content,
            total,
            left: AtomicU64::new(total),
            discards: RwLock::new(()),
        })
    }

    /// Pages that had content.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Pages whose content is not there yet.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// The pages of `range` are zero from now on, whatever content they had. Whoever discards memory calls this first, so that
    /// nothing comes back.
    pub fn discard(&self, range: PageRange) {
        let _exclusive = self.discards.write();
        self.forget(range);
    }

    /// Lets the kernel answer all faults again, when nothing is missing. The descriptor is closed for that: `UFFDIO_UNREGISTER`
    /// would miss threads that begin to wait at that moment, and leave those waiting whose discards nobody has read.
    pub(super) fn let_go(&self) {
        *self.uffd.write() = None;
    }

    /// Whether all faults end with the last missing page. Another process may discard pages later, and asks then.
    pub(super) fn ends(&self) -> bool {
        self.is_own
    }

    /// `None` when the kernel has the faults back. A thread that has it may ask once more.
    pub(super) fn uffd(&self) -> Option<impl Deref<Target = Userfaultfd>> {
        RwLockReadGuard::try_map(self.uffd.read_recursive(), Option::as_ref).ok()
    }

    /// Reads what threads wait for, and adds their addresses to `faults`. Pages that were discarded are zero when this returns.
    pub(super) fn read_faults(&self, faults: &mut Vec<u64>) -> Result<(), PagingError> {
        // The thread that discards goes on when its message is read. So nothing is placed until it has been obeyed.
        let Some(uffd) = self.uffd() else {
            return Ok(());
        };
        let _exclusive = self.tells_removals.then(|| self.discards.write());
        let mut messages = Vec::with_capacity(MESSAGES);
        let read = uffd.read::<MESSAGES>(&mut messages);
        read.map_err(PagingError::Read)?;
        for message in messages {
            match message {
                Message::Fault(address) => faults.push(address),
                Message::Removed(start, end) => {
                    for mapping in &self.mappings {
                        let bytes = mapping.bytes();
                        let (from, to) = (start.max(bytes.start), end.min(bytes.end));
                        if from >= to {
                            continue;
                        }
                        let first = mapping.pages().first() + (from - bytes.start) / PAGE_SIZE;
                        if let Some(range) = PageRange::new(first, (to - from) / PAGE_SIZE) {
                            self.forget(range);
                        }
                    }
                }
                Message::Other(event) => log::debug!("userfaultfd event {event:#x}"),
            }
        }
        Ok(())
    }

    fn forget(&self, range: PageRange) {
        self.wanted.remove(range);
        let gone = self.absent.remove(range);
        self.left.fetch_sub(gone, Ordering::AcqRel);
    }

    /// What a thread needs that waits at `address`. `None` if no page is mapped there.
    pub(super) fn need(&self, address: u64) -> Option<Need> {
        let (_, page) = self.at(address)?;
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        Some(if page >= self.wanted.pages() {
            Need::Zero
        } else if self.wanted.clear(word, bit) != 0 {
            Need::Content(page)
        } else if self.absent.contains(page) {
            Need::Patience
        } else {
            Need::Zero
        })
    }

    /// Claims at most `most` pages that follow each other, the first that are wanted of the 64 pages of `word`, from page `from` of
    /// these on.
    pub(super) fn claim(&self, word: usize, from: u32, most: u32) -> Option<PageRange> {
        let (range, rest) = self.wanted.claim_run(word, from, most)?;
        self.want_word(word, rest);
        Some(range)
    }

    /// Gives claimed pages back that the caller cannot place.
    pub(super) fn want(&self, range: PageRange) {
        word_masks(range).for_each(|(word, mask)| self.want_word(word, mask));
    }

    fn want_word(&self, word: usize, mask: u64) {
        if mask == 0 {
            return;
        }
        // What was discarded meanwhile is not wanted any more.
        let _shared = self.discards.read();
        self.wanted.merge(word, mask & self.absent.load(word));
    }

    /// The wanted pages, for walks.
    pub(super) fn wanted(&self) -> &MigrationBitmap {
        &self.wanted
    }

    /// Places `content` in the pages of `range`, which the caller has claimed, and wakes all who wait for them. `refused` is
    /// called when the kernel takes no pages because memory is being discarded and nobody has read that yet. Then it tries
    /// again.
    ///
    /// # Errors
    /// [`PagingError`] if the pages cannot be placed, or are there although nobody has placed them.
    pub(super) fn place(
        &self,
        range: PageRange,
        content: &[u8],
        refused: &mut dyn FnMut() -> Result<(), PagingError>,
    ) -> Result<(), PagingError> {
        let Some(uffd) = self.uffd() else {
            return Ok(());
        };
        let Some(main) = self.mappings.iter().find_map(|mapping| mapping.part(range)) else {
            return Err(PagingError::Unmapped(address(range.first())));
        };
        let (mut next, mut placed_all) = (range.first(), 0);
        while next < range.end() {
            let shared = self.discards.read();
            let Some(run) = self.absent_from(next, range.end()) else {
                break;
            };
            let skipped = ((run.first() - range.first()) * PAGE_SIZE) as usize;
            let content = &content[skipped..][..run.bytes() as usize];
            let (done, refusal) = uffd.copy(main.address_of(run.first()), content);
            if let Some(placed) = PageRange::new(run.first(), done / PAGE_SIZE) {
                self.absent.remove(placed);
                self.wake_others(main, placed)?;
                self.left.fetch_sub(placed.count(), Ordering::AcqRel);
                placed_all += placed.count();
            }
            drop(shared);
            next = run.first() + done / PAGE_SIZE;
            self.after((done, refusal), next, refused)?;
        }
        if placed_all < range.count() {
            // Some were discarded while the caller had them. Who waits for these asks once more, and gets zeros.
            self.wake_all(range)?;
        }
        Ok(())
    }

    /// Whether the content of `page` is still to come.
    pub(super) fn is_absent(&self, page: u64) -> bool {
        self.absent.contains(page)
    }

    /// The pages whose content is still to come, of the 64 pages of `word`.
    pub(super) fn absent_in(&self, word: usize) -> u64 {
        self.absent.load(word)
    }

    /// The runs of pages whose content is still to come, ascending. Others may bring some meanwhile.
    pub(super) fn absent_runs(&self) -> Vec<PageRange> {
        self.absent.runs()
    }

    /// Wakes all who wait for pages of `range`. They ask again.
    pub(super) fn wake_all(&self, range: PageRange) -> Result<(), PagingError> {
        let mut parts = self.watched.iter().filter_map(|part| part.part(range));
        parts.try_for_each(|part| self.wake(&part))
    }

    /// The first pages from `from` to `end` that are absent.
    fn absent_from(&self, from: u64, end: u64) -> Option<PageRange> {
        let first = (from..end).find(|page| self.absent.contains(*page))?;
        let count = (first..end).take_while(|page| self.absent.contains(*page));
        PageRange::new(first, count.count() as u64)
    }

    /// Wakes those who wait for the pages of `range` in mappings other than `main`.
    fn wake_others(&self, main: Mapping, range: PageRange) -> Result<(), PagingError> {
        let main = main.address_of(range.first());
        let others = self.watched.iter().filter_map(|other| other.part(range));
        for other in others.filter(|other| other.address() != main) {
            self.wake(&other)?;
        }
        Ok(())
    }

    fn wake(&self, mapping: &Mapping) -> Result<(), PagingError> {
        let woken = self
            .uffd()
            .map_or(Ok(()), |uffd| uffd.wake(mapping.bytes()));
        woken.map_err(|error| PagingError::Kernel {
            action: "wake a thread that waits for",
            gpa: address(mapping.pages().first()),
            source: error,
        })
    }

    /// Answers the fault at `address` with zeros, and the next faults behind it, too.
    pub(super) fn zero(
        &self,
        address: u64,
        refused: &mut dyn FnMut() -> Result<(), PagingError>,
    ) -> Result<(), PagingError> {
        let (Some(uffd), Some((mapping, page))) = (self.uffd(), self.at(address)) else {
            return Ok(());
        };
        let most = match self.is_own {
            true => ZERO_RUN,
            false => FOREIGN_ZERO_RUN,
        };
        let end = (page / most + 1) * most;
        let end = end.min(mapping.pages().end());
        loop {
            let shared = self.discards.read();
            let present = (page..end).take_while(|page| !self.absent.contains(*page));
            let Some(run) = PageRange::new(page, present.count() as u64) else {
                // It is absent after all, so whoever claims it wakes the thread.
                return Ok(());
            };
            let Some(part) = mapping.part(run) else {
                return Ok(());
            };
            let (done, refusal) = uffd.zero(part.bytes());
            drop(shared);
            match refusal {
                // The first page was answered, and the next one was not missing.
                _ if done > 0 => return Ok(()),
                // The page is there: it has come since the thread began to wait.
                Some(Errno::EXIST) => {
                    let one = PageRange::new(page, 1);
                    return match one.and_then(|one| mapping.part(one)) {
                        Some(part) => self.wake(&part),
                        None => Ok(()),
                    };
                }
                refusal => self.after((done, refusal), page, refused)?,
            }
            if refusal.is_none() {
                return Ok(());
            }
        }
    }

    /// What a call that placed pages means, of which `page` is the first that was not placed.
    fn after(
        &self,
        (done, refusal): Done,
        page: u64,
        refused: &mut dyn FnMut() -> Result<(), PagingError>,
    ) -> Result<(), PagingError> {
        match refusal {
            None => Ok(()),
            // The next call says why this one has stopped.
            Some(Errno::AGAIN | Errno::EXIST) if done > 0 => Ok(()),
            Some(Errno::AGAIN) => refused(),
            Some(Errno::EXIST) => Err(PagingError::Foreign(address(page))),
            Some(Errno::SRCH) => Err(PagingError::Gone),
            Some(error) => Err(PagingError::Kernel {
                action: "place",
                gpa: address(page),
                source: error.into(),
            }),
        }
    }

    /// The watched mapping at `address`, and the page there.
    fn at(&self, address: u64) -> Option<(Mapping, u64)> {
        let after = self
            .watched
            .partition_point(|mapping| mapping.address() <= address);
        let mapping = self.watched.get(after.checked_sub(1)?)?;
        Some((*mapping, mapping.page_at(address)?))
    }
}
