// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finds pages by their state: free pages to allocate, pages in use to work on.

use core::sync::atomic::{AtomicU64, Ordering};

use spec::bare::{HoldPolicy, PageState, StatusWord};
use spec::stamp::Random;

use crate::memory::{Claim, Memory};
use crate::status;

/// Random probes before a linear search.
const PROBES: u64 = 64;

/// Numbers of pages that are [`PageState::Free`] and [`PageState::Held`] now, so that no vCPU searches in vain.
static FREE: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);

/// A vCPU's allocator. All vCPUs share the same pages.
#[derive(Debug)]
pub struct Allocator<'m> {
    memory: &'m Memory,
    hold: HoldPolicy,
    /// How many free pages are not allocated.
    reserve: u64,
    random: Random,
}

impl<'m> Allocator<'m> {
    /// An allocator that does not allocate the last `reserve` free pages, like an operating system, and makes its random
    /// choices by `seed`.
    pub fn new(memory: &'m Memory, hold: HoldPolicy, reserve: u64, seed: u64) -> Self {
        Self {
            memory,
            hold,
            reserve,
            random: Random::new(seed),
        }
    }

    /// Allocates a page. The caller writes it and makes it [`PageState::InUse`] by
    /// [`Allocator::put_in_use`].
    ///
    /// Under [`HoldPolicy::Early`] it is often a page that was just hinted, to provoke the race that a host must handle.
    pub fn take(&mut self) -> Option<Claim<'m>> {
        match self.hold {
            HoldPolicy::UntilDone => self.take_free(),
            HoldPolicy::Early if self.random.below(2) == 0 => {
                self.take_held().or_else(|| self.take_free())
            }
            HoldPolicy::Early => self.take_free().or_else(|| self.take_held()),
        }
    }

    /// A random page in use, to check or to write.
    pub fn any_in_use(&mut self) -> Option<Claim<'m>> {
        self.find(PageState::InUse)
    }

    /// Marks a page from [`Allocator::take`] as in use.
    pub fn put_in_use(&self, mut claim: Claim<'m>) {
        claim.stamp();
        claim.release(PageState::InUse);
        status::add(StatusWord::Writes, 1);
        status::add(StatusWord::InUse, 1);
    }

    /// Frees a page that was in use.
    pub fn free(&self, claim: Claim<'m>) {
        claim.release(PageState::Free);
        status::subtract(StatusWord::InUse, 1);
        FREE.fetch_add(1, Ordering::Relaxed);
    }

    fn take_free(&mut self) -> Option<Claim<'m>> {
        let claim =
            (FREE.load(Ordering::Relaxed) > self.reserve).then(|| self.find(PageState::Free))??;
        FREE.fetch_sub(1, Ordering::Relaxed);
        Some(claim)
    }

    fn take_held(&mut self) -> Option<Claim<'m>> {
        let claim = (HELD.load(Ordering::Relaxed) > 0).then(|| self.find(PageState::Held))??;
        HELD.fetch_sub(1, Ordering::Relaxed);
        status::add(StatusWord::EarlyReleases, 1);
        Some(claim)
    }

    fn find(&mut self, state: PageState) -> Option<Claim<'m>> {
        let memory = self.memory;
        let pages = memory.pages();
        let claim = |index| {
            memory
                .is(index, state)
                .then(|| memory.claim(index, state))
                .flatten()
        };
        (0..PROBES)
            .find_map(|_| claim(self.random.below(pages)))
            .or_else(|| {
                let start = self.random.below(pages);
                (start..pages).chain(0..start).find_map(claim)
            })
    }
}

/// Marks a free page as held; false if it is not free.
pub fn hold(memory: &Memory, index: u64) -> bool {
    let held = memory.exchange(index, PageState::Free, PageState::Held);
    if held {
        FREE.fetch_sub(1, Ordering::Relaxed);
        HELD.fetch_add(1, Ordering::Relaxed);
    }
    held
}

/// Marks a held page as free. Does nothing if it was released early.
pub fn unhold(memory: &Memory, index: u64) {
    if memory.exchange(index, PageState::Held, PageState::Free) {
        HELD.fetch_sub(1, Ordering::Relaxed);
        FREE.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sets the number of pages that are free at the start.
pub fn count_free(pages: u64) {
    FREE.fetch_add(pages, Ordering::Relaxed);
}
