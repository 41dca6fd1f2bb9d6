// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Finding pages in a state: free ones to take, used ones to work on.

use core::sync::atomic::{AtomicU64, Ordering};

use spec::bare::{HoldPolicy, PageState, StatusWord};
use spec::stamp::Random;

use crate::memory::{Claim, Memory};
use crate::status;

/// Probes at random before a search from one end to the other.
const PROBES: u64 = 64;

/// Pages that are [`PageState::Free`] or [`PageState::Held`] now, so that nobody looks for what there is not.
static FREE: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicU64 = AtomicU64::new(0);

/// A vCPU's way to pages. All vCPUs work on the same pages.
#[derive(Debug)]
pub struct Allocator<'m> {
    memory: &'m Memory,
    hold: HoldPolicy,
    /// Free pages that are left alone.
    reserve: u64,
    random: Random,
}

impl<'m> Allocator<'m> {
    /// An allocator that leaves the last `reserve` free pages alone, as an operating system does, and
    /// makes its random choices by `seed`.
    pub fn new(memory: &'m Memory, hold: HoldPolicy, reserve: u64, seed: u64) -> Self {
        Self {
            memory,
            hold,
            reserve,
            random: Random::new(seed),
        }
    }

    /// Takes a page that nobody uses. The caller writes it and makes it [`PageState::InUse`] by
    /// [`Allocator::put_in_use`].
    ///
    /// Under [`HoldPolicy::Early`] that is often a page that has just been hinted: the race that a host
    /// must survive.
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

    /// Puts a page taken by [`Allocator::take`] into use.
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

/// Moves a free page to the hinted ones; false if it is not free.
pub fn hold(memory: &Memory, index: u64) -> bool {
    let held = memory.exchange(index, PageState::Free, PageState::Held);
    if held {
        FREE.fetch_sub(1, Ordering::Relaxed);
        HELD.fetch_add(1, Ordering::Relaxed);
    }
    held
}

/// Gives a hinted page back; does nothing if it was released early.
pub fn unhold(memory: &Memory, index: u64) {
    if memory.exchange(index, PageState::Held, PageState::Free) {
        HELD.fetch_sub(1, Ordering::Relaxed);
        FREE.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts `pages` that are free from the start.
pub fn count_free(pages: u64) {
    FREE.fetch_add(pages, Ordering::Relaxed);
}
